// The modules whose CRDs `up` installs, and their versions; ../crds.go names the files. Nothing of them is compiled, so this is apart
// from ../go.mod, and `go mod tidy` would empty it.
module tenancy-fixer/tests/cluster/crds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/kserve/kserve v0.20.0
	github.com/kubeflow/katib v0.19.0
	github.com/kubeflow/trainer/v2 v2.2.0
	github.com/kubeflow/training-operator v1.9.3
	istio.io/api v1.31.1
	sigs.k8s.io/jobset v0.11.1
)
