package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// sources are the CRDs that are taken from published modules. crds/go.mod names the modules' versions, crds/go.sum their hashes.
var sources = []struct {
	module string
	file   string
	names  []string // out of a file with several
}{
	{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml", []string{
		"envoyfilters.networking.istio.io", "virtualservices.networking.istio.io", "sidecars.networking.istio.io",
		"authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io"}},
	{"github.com/cert-manager/cert-manager", "deploy/crds/cert-manager.io_certificates.yaml", nil},
	{"github.com/cert-manager/cert-manager", "deploy/crds/cert-manager.io_issuers.yaml", nil},
	{"github.com/kubeflow/katib", "manifests/v1beta1/components/crd/experiment.yaml", nil},
	{"github.com/kubeflow/katib", "manifests/v1beta1/components/crd/trial.yaml", nil},
	{"github.com/kserve/kserve", "config/crd/full/serving.kserve.io_inferenceservices.yaml", nil},
	{"github.com/kubeflow/trainer/v2", "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml", nil},
	{"github.com/kubeflow/trainer/v2", "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml", nil},
	{"github.com/kubeflow/trainer/v2", "manifests/base/crds/trainer.kubeflow.org_clustertrainingruntimes.yaml", nil},
	{"sigs.k8s.io/jobset", "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_jaxjobs.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_mpijobs.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_paddlejobs.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_tfjobs.yaml", nil},
	{"github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_xgboostjobs.yaml", nil},
}

// collectCRDs reads the CRDs out of the module cache and from our own files in the folder `from`, and writes each as JSON to `out`:
// `up` then needs neither the modules nor the time to parse 8 MB of YAML.
func collectCRDs(from, out string) error {
	dirs, err := moduleDirs(from)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, s := range sources {
		dir, ok := dirs[s.module]
		if !ok {
			return fmt.Errorf("%s/go.mod does not name %s", from, s.module)
		}
		if err := collect(filepath.Join(dir, s.file), s.names, out); err != nil {
			return err
		}
	}
	own, err := filepath.Glob(filepath.Join(from, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range own {
		if err := collect(file, nil, out); err != nil {
			return err
		}
	}
	return nil
}

// moduleDirs downloads the modules that go.mod in the folder requires, unless they are there, and tells where they are.
func moduleDirs(folder string) (map[string]string, error) {
	cmd := exec.Command("go", "mod", "download", "-json")
	cmd.Dir = folder
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	dirs := map[string]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(output))); decoder.More(); {
		var m struct{ Path, Dir, Error string }
		if err := decoder.Decode(&m); err != nil {
			return nil, fmt.Errorf("go mod download: %w", err)
		}
		if m.Error != "" {
			return nil, fmt.Errorf("go mod download: %s: %s", m.Path, m.Error)
		}
		dirs[m.Path] = m.Dir
	}
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w", err)
	}
	return dirs, nil
}

func collect(file string, names []string, out string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	found := 0
	for _, document := range strings.Split("\n"+string(data), "\n---") {
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.Unmarshal([]byte(document), &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if crd.Kind != "CustomResourceDefinition" || names != nil && !slices.Contains(names, crd.Name) {
			continue
		}
		found++
		// A conversion webhook would be a call to a server that does not run here.
		crd.Spec.Conversion = nil
		// Ten levels of field descriptions are three quarters of the size; the tests need the schemas only.
		for i := range crd.Spec.Versions {
			if s := crd.Spec.Versions[i].Schema; s != nil {
				dropDescriptions(s.OpenAPIV3Schema)
			}
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&crd)
		if err != nil {
			return err
		}
		delete(object, "status")
		encoded, err := json.Marshal(object)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, crd.Name+".json"), encoded, 0o644); err != nil {
			return err
		}
	}
	if found == 0 || names != nil && found != len(names) {
		return fmt.Errorf("%s: %d CRDs found, wanted %v", file, found, names)
	}
	return nil
}

func dropDescriptions(s *apiextensions.JSONSchemaProps) {
	if s == nil {
		return
	}
	s.Description = ""
	for _, m := range []map[string]apiextensions.JSONSchemaProps{s.Properties, s.PatternProperties} {
		for k, v := range m {
			dropDescriptions(&v)
			m[k] = v
		}
	}
	if s.Items != nil {
		dropDescriptions(s.Items.Schema)
	}
	if s.AdditionalProperties != nil {
		dropDescriptions(s.AdditionalProperties.Schema)
	}
}

type crd struct {
	apiextensions.CustomResourceDefinition
	json []byte
}

// readCRDs also gives a hash of them all, by which `up` knows whether they are installed already.
func readCRDs(folder string) (all []crd, hash string, err error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return nil, "", err
	}
	if len(files) == 0 {
		return nil, "", fmt.Errorf("no CRDs in %s", folder)
	}
	sum := sha256.New()
	for _, file := range files {
		c := crd{}
		if c.json, err = os.ReadFile(file); err != nil {
			return nil, "", err
		}
		if err := json.Unmarshal(c.json, &c.CustomResourceDefinition); err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		sum.Write(c.json)
		all = append(all, c)
	}
	return all, hex.EncodeToString(sum.Sum(nil)), nil
}

// installer gives a step that is done when all CRDs are served: it applies them once, if they are to be installed, then looks.
func installer(config *rest.Config, crds []crd, install bool) (func(context.Context) error, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	finder, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if install {
			definitions := client.Resource(apiextensions.SchemeGroupVersion.WithResource("customresourcedefinitions"))
			if err := apply(ctx, definitions, crds); err != nil {
				return err
			}
			install = false
		}
		return served(finder, crds)
	}, nil
}

func apply(ctx context.Context, client dynamic.ResourceInterface, crds []crd) error {
	errs := make([]error, len(crds))
	var all sync.WaitGroup
	for i, c := range crds {
		all.Go(func() {
			_, err := client.Patch(ctx, c.Name, types.ApplyPatchType, c.json,
				metav1.PatchOptions{FieldManager: "test-cluster", Force: ptr.To(true)})
			if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
				err = fatalError{err}
			}
			if err != nil {
				errs[i] = fmt.Errorf("CRD %s: %w", c.Name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// served is nil when discovery lists each served version of every CRD, which it does from when the CRD is established.
func served(finder *discovery.DiscoveryClient, crds []crd) error {
	_, lists, err := finder.ServerGroupsAndResources()
	if err != nil {
		return err
	}
	found := map[schema.GroupVersionResource]bool{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range l.APIResources {
			found[gv.WithResource(r.Name)] = true
		}
	}
	for _, c := range crds {
		for _, v := range c.Spec.Versions {
			gvr := schema.GroupVersionResource{Group: c.Spec.Group, Version: v.Name, Resource: c.Spec.Names.Plural}
			if v.Served && !found[gvr] {
				return fmt.Errorf("%s is not discovered", gvr)
			}
		}
	}
	return nil
}
