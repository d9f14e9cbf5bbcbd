package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	serviceCIDR = "10.96.0.0/16"
	serviceIP   = "10.96.0.1" // of the Service `kubernetes`: the first of the range
)

// prepare writes what a cluster needs before its first start. The ports file comes last: where it is, the rest is complete.
func (d layout) prepare() (ports, error) {
	if p, err := d.readPorts(); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if err := os.MkdirAll(d.pki(""), 0o700); err != nil {
		return ports{}, err
	}
	p, err := choosePorts()
	if err != nil {
		return p, err
	}
	ca, err := newAuthority("test-cluster-ca")
	if err != nil {
		return p, err
	}
	serving, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceIP)},
	})
	if err != nil {
		return p, err
	}
	// One user for people, tests and the controller manager, with every right.
	admin, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "test-cluster-admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return p, err
	}
	manager, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "system:kube-controller-manager", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return p, err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, err
	}
	accountsKey, err := encodeKey(accounts)
	if err != nil {
		return p, err
	}
	accountsPublic, err := x509.MarshalPKIXPublicKey(&accounts.PublicKey)
	if err != nil {
		return p, err
	}
	adminConfig, err := kubeconfig(p, ca, "admin", admin)
	if err != nil {
		return p, err
	}
	managerConfig, err := kubeconfig(p, ca, "kube-controller-manager", manager)
	if err != nil {
		return p, err
	}
	for path, data := range map[string][]byte{
		d.pki("ca.crt"):                             ca.cert,
		d.pki("ca.key"):                             ca.key,
		d.pki("apiserver.crt"):                      serving.cert,
		d.pki("apiserver.key"):                      serving.key,
		d.pki("service-accounts.key"):               accountsKey,
		d.pki("service-accounts.pub"):               pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: accountsPublic}),
		d.pki("kube-controller-manager.kubeconfig"): managerConfig,
		d.kubeconfig():                              adminConfig,
		d.file("audit-policy.yaml"):                 []byte(auditPolicy),
	} {
		if err := writeFile(path, data); err != nil {
			return p, err
		}
	}
	return p, d.writePorts(p)
}

// pair is a certificate and its key, PEM.
type pair struct{ cert, key []byte }

type authority struct {
	pair
	parsed *x509.Certificate
	signer *ecdsa.PrivateKey
}

func newAuthority(name string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	p, err := sign(template, template, key, key)
	if err != nil {
		return authority{}, err
	}
	block, _ := pem.Decode(p.cert)
	parsed, err := x509.ParseCertificate(block.Bytes)
	return authority{pair: p, parsed: parsed, signer: key}, err
}

func (a authority) issue(template *x509.Certificate) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return sign(template, a.parsed, key, a.signer)
}

func sign(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (p pair, err error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return p, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = template.NotBefore.AddDate(10, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return p, err
	}
	p.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.key, err = encodeKey(key)
	return p, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func kubeconfig(p ports, ca authority, user string, client pair) ([]byte, error) {
	const name = "test-cluster"
	return clientcmd.Write(clientcmdapi.Config{
		CurrentContext: name,
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: user}},
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: p.server(), CertificateAuthorityData: ca.cert}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: {ClientCertificateData: client.cert, ClientKeyData: client.key}},
	})
}
