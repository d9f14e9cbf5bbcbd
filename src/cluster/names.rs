//! Every name that others rely on: labels, annotations, namespaces, objects. One line each, nothing else.

/// Binary, package, Deployment, Service, webhook configuration, and the value of `app.kubernetes.io/name`.
pub const PROJECT: &str = "tenancy-fixer";
/// The namespace that we run in.
pub const NAMESPACE: &str = "kubeflow-extension";
/// Secret with `tls.crt`, `tls.key` and `ca.crt` of a serving certificate that somebody else makes.
pub const TLS_SECRET: &str = "tenancy-fixer-tls";
/// Secret with the same keys of the certificate authority that we make.
pub const CA_SECRET: &str = "tenancy-fixer-ca";
/// Annotation of that Secret: since when every webhook of ours has had the authority in its `caBundle` (RFC 3339).
pub const CA_PUBLISHED_ANNOTATION: &str = "kubeflow-extension/ca-published";
/// Label that says what an object belongs to (Kubernetes' recommended labels).
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// Label of what our controllers write, with its value.
pub const MANAGED_BY_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", PROJECT);

/// Tenant label: `true` on what is ours, `false` on what we are to leave alone.
pub const TENANT_LABEL: &str = "kubeflow-extension";
/// Its value on what is ours in a namespace that is for its owner only, and was not made by the owner: nothing that
/// grants the owner's identity selects it.
pub const WITHHELD: &str = "withheld";
/// Annotation of what admission has changed: our version, and the steps (`steps.rs`). A note for people.
pub const APPLIED: &str = "kubeflow-extension/applied";
/// Label of a namespace whose jobs the gate looks at: `enforce` or `warn`.
pub const GATE_LABEL: &str = "kubeflow-extension/gate";
/// Prefix of our own annotations, and manager of what we add to lists that are keyed by manager.
pub const MANAGER: &str = "kubeflow-extension/tenancy-fixer";

/// The namespace of Kubeflow's shared services; what happens there is not a tenant's.
pub const KUBEFLOW_NAMESPACE: &str = "kubeflow";
/// Label of a namespace that belongs to a Profile (kubeflow/dashboard, profile-controller).
pub const PROFILE_NAMESPACE_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "kubeflow-profile");
/// The service account of a tenant's namespace that may do what its owner may do (profile-controller).
pub const TENANT_SERVICE_ACCOUNT: &str = "default-editor";

/// Label of a v1 Notebook's pod (kubeflow/notebooks, notebook-controller).
pub const NOTEBOOK_LABEL: &str = "notebook-name";
/// Label of a v2 Workspace's pod (kubeflow/notebooks, workspaces).
pub const WORKSPACE_LABEL: &str = "notebooks.kubeflow.org/workspace-name";
/// Label of an InferenceService's pod (KServe), which its own webhook looks after.
pub const INFERENCE_SERVICE_LABEL: &str = "serving.kserve.io/inferenceservice";
/// Annotation of a static pod's mirror, which nobody may change (Kubernetes).
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Container of the sidecar (Istio).
pub const ISTIO_PROXY: &str = "istio-proxy";
/// Label (and deprecated annotation) that decides on sidecar injection (Istio).
pub const ISTIO_INJECT: &str = "sidecar.istio.io/inject";
/// Annotation that asks for a native sidecar (Istio 1.24).
pub const ISTIO_NATIVE_SIDECAR: &str = "sidecar.istio.io/nativeSidecar";
/// Annotation with a proxy's own ProxyConfig as YAML or JSON (Istio).
pub const ISTIO_PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Field of ProxyConfig: containers start once the proxy is ready (Istio 1.7; has no meaning for native sidecars).
pub const ISTIO_HOLD_APPLICATION: &str = "holdApplicationUntilProxyStarts";

/// Environment variable from which the SDK of Kubeflow Pipelines takes its token's path.
pub const PIPELINES_TOKEN_VARIABLE: &str = "KF_PIPELINES_SA_TOKEN_PATH";
/// Folder of that token, as the SDK and the documented PodDefault have it.
pub const PIPELINES_TOKEN_FOLDER: &str = "/var/run/secrets/kubeflow/pipelines";
/// File of that token in its folder.
pub const PIPELINES_TOKEN_FILE: &str = "token";
/// Volume of that token, as the documented PodDefault has it.
pub const PIPELINES_TOKEN_VOLUME: &str = "volume-kf-pipeline-token";
/// Audience of that token (`TOKEN_REVIEW_AUDIENCE` of Pipelines' API server).
pub const PIPELINES_TOKEN_AUDIENCE: &str = "pipelines.kubeflow.org";

/// Environment variable that names MLflow's server to its clients.
pub const TRACKING_URI: &str = "MLFLOW_TRACKING_URI";
/// Environment variable with the workspace of MLflow's clients (MLflow 3.10).
pub const TRACKING_WORKSPACE: &str = "MLFLOW_WORKSPACE";
/// Environment variable by which MLflow's clients find a token (MLflow 3.10: `kubernetes`).
pub const TRACKING_AUTH: &str = "MLFLOW_TRACKING_AUTH";
/// Environment variable with a user of MLflow, and the key of [`TRACKING_SECRET`] that has it.
pub const TRACKING_USERNAME: (&str, &str) = ("MLFLOW_TRACKING_USERNAME", "username");
/// The same with the user's password.
pub const TRACKING_PASSWORD: (&str, &str) = ("MLFLOW_TRACKING_PASSWORD", "password");
/// Environment variables by which MLflow's clients send artifacts past its server, to the object store itself, or do not;
/// unless told otherwise those of MLflow 3.17 do where the server offers it.
pub const TRACKING_DIRECT: [&str; 2] =
    ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"];
/// Secret of a tenant's namespace with a user of MLflow.
pub const TRACKING_SECRET: &str = "mlflow-credentials";

/// API group of Katib and of the legacy training operator.
pub const KUBEFLOW_GROUP: &str = "kubeflow.org";
/// Containers that Katib's webhook adds for metrics: to standard output and files, and to anything else.
pub const KATIB_COLLECTORS: &[&str] = &[KATIB_GO_COLLECTOR, "metrics-collector"];
/// The former of these, the only one that is a Go program.
pub const KATIB_GO_COLLECTOR: &str = "metrics-logger-and-collector";
/// Environment variable that Katib gives to the primary container of a trial alone.
pub const KATIB_TRIAL_VARIABLE: &str = "KATIB_TRIAL_NAME";
/// Kind of one run of a Katib experiment.
pub const TRIAL: &str = "Trial";
/// Kind of a Katib experiment; Katib gives its labels to its Trials (katib, pkg/controller.v1beta1/util/labels.go).
pub const EXPERIMENT: &str = "Experiment";
/// Kind that gives a user a namespace of its own name.
pub const PROFILE: &str = "Profile";
/// Annotation of a profile's namespace: the owner's name as the profile controller wrote it.
pub const OWNER_ANNOTATION: &str = "owner";
/// Annotation of a namespace: how its pods prove who they are (`header`, `token`, `auto`), in place of the setting.
pub const IDENTITY_ANNOTATION: &str = "kubeflow-extension/identity";
/// Annotation of a namespace: whether only what its owner has made acts as the owner (`true`, `false`), in place of the
/// setting.
pub const OWNER_ONLY_ANNOTATION: &str = "kubeflow-extension/owner-only";
/// Annotation of a Notebook: who has made it, kept true by admission.
pub const CREATOR_ANNOTATION: &str = "kubeflow-extension/creator";
/// The same as Kubeflow's web app has it, which everybody may write who may write the Notebook.
pub const NOTEBOOK_CREATOR_ANNOTATION: &str = "notebooks.kubeflow.org/creator";
/// Kind of Kubeflow's notebooks, version 1.
pub const NOTEBOOK: &str = "Notebook";
/// Field manager of everything that our controllers apply.
pub const FIELD_MANAGER: &str = "tenancy-fixer";
/// Lease that says which replica writes.
pub const LEASE: &str = "tenancy-fixer";

/// Name of a tenant's ServiceRoleBinding and AuthorizationPolicy in the namespace of Kubeflow.
pub const BINDING_PREFIX: &str = "bind-ml-pipeline-";
/// Name of a tenant's EnvoyFilter in its own namespace.
pub const ENVOY_FILTER: &str = "add-header";
/// Name of the EnvoyFilter that takes the header off every other pod's requests, where only the owner's act as the owner.
pub const REMOVE_HEADER_FILTER: &str = "remove-header";
/// ServiceRole that the bindings refer to (Kubeflow before 1.3).
pub const PIPELINES_ROLE: &str = "ml-pipeline-services";
/// Label `app` of the API server of Kubeflow Pipelines.
pub const PIPELINES_APP: &str = "ml-pipeline";
/// Label of a namespace or pod in Istio's ambient mode, with the value `ambient`.
pub const ISTIO_DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Labels of a namespace whose pods get sidecars: `istio-injection=enabled`, or a revision.
pub const ISTIO_INJECTION: &str = "istio-injection";
/// The latter of these.
pub const ISTIO_REVISION: &str = "istio.io/rev";

/// Volume of the launcher, and init container that copies it there.
pub const LAUNCHER_VOLUME: &str = "tenancy-fixer-launcher";
/// Where containers find that volume.
pub const LAUNCHER_FOLDER: &str = "/kubeflow-extension/launcher";
/// The launcher there.
pub const LAUNCHER_PATH: &str = "/kubeflow-extension/launcher/launcher";
/// Volume of the files by which the containers of a pod agree.
pub const MARKERS_VOLUME: &str = "tenancy-fixer-markers";
/// Where containers find that volume.
pub const MARKERS_FOLDER: &str = "/kubeflow-extension/markers";
/// User and group of our image.
pub const UNPRIVILEGED_USER: i64 = 65532;
/// Label of a pod that Argo runs for a workflow; it looks after sidecars itself.
pub const ARGO_WORKFLOW_LABEL: &str = "workflows.argoproj.io/workflow";

/// Annotation of a template: the CRD's name, as mlflow#4317 has it.
pub const CRD_NAME: &str = "mlflow.org/crd-name";
/// Annotation of a template: labels of the pods whose logs are shown (mlflow#4317); empty for none.
pub const LOG_LABELS: &str = "mlflow.org/crd-log-labels";
/// Annotation of a template: seconds between two looks, where there is no watch (mlflow#4317).
pub const POLL_INTERVAL: &str = "mlflow.org/poll-status-interval";
/// Annotation of a template: the JSONPath at which its kind says how far it is.
pub const STATUS_PATH: &str = "mlflow.org/status-path";
/// Annotation of a template: words for success at that path, separated by commas.
pub const STATUS_FINISHED: &str = "mlflow.org/status-finished";
/// The same for failure.
pub const STATUS_FAILED: &str = "mlflow.org/status-failed";
/// The same for what has begun.
pub const STATUS_RUNNING: &str = "mlflow.org/status-running";

/// What somebody has to be allowed to `get` to see our page: a path of no API server's own, so that no role grants it by accident.
pub const PAGE_URL: &str = "/tenancy-fixer/page";

/// Longest text of an Event (events.k8s.io, `note`), in bytes.
pub const LONGEST_NOTE: usize = 1024;
/// Label of a namespace: which model versions of MLflow's may be served in it, `true` or `any`. Label of an InferenceService that we
/// have made: for which MLflow.
pub const SERVING_LABEL: &str = "kubeflow-extension/serving";
/// Annotation of an InferenceService: a hash of the manifest that we have applied.
pub const MANIFEST_HASH: &str = "kubeflow-extension/manifest-hash";
/// Annotation by which replicas hand deliveries on to the one that works.
pub const WAKE_ANNOTATION: &str = "kubeflow-extension/wake";
/// Lease that says which replica serves models; another one, with `-wakes` behind it, carries [`WAKE_ANNOTATION`].
pub const SERVING_LEASE: &str = "tenancy-fixer-serving";
/// The latter.
pub const SERVING_WAKES: &str = "tenancy-fixer-serving-wakes";
/// Namespace and name of the ServiceAccount that serves models: the listener's that was here before.
pub const SERVING_ACCOUNT: (&str, &str) = ("mlflow", "mlflow-kserve-webhook-listener");
/// Kind of KServe's deployments.
pub const INFERENCE_SERVICE: &str = "InferenceService";
/// Annotation that says how KServe deploys (KServe).
pub const DEPLOYMENT_MODE: &str = "serving.kserve.io/deploymentMode";
/// Labels, and as they are annotations, of what is served: those of the listener that was here before.
pub const MLFLOW_MODEL_NAME: &str = "mlflow.org/model-name";
/// See [`MLFLOW_MODEL_NAME`].
pub const MLFLOW_MODEL_VERSION: &str = "mlflow.org/model-version";
/// The same; and label of an object that an MLflow project runs as, and of its pods.
pub const MLFLOW_RUN_ID: &str = "mlflow.org/run-id";
/// The same; and annotation of an object that an MLflow project runs as.
pub const MLFLOW_EXPERIMENT_ID: &str = "mlflow.org/experiment-id";
/// Annotation: MLflow's workspace.
pub const MLFLOW_WORKSPACE: &str = "mlflow.org/workspace";
/// Label of the InferenceServices of the listener that was here before.
pub const OLD_LISTENER_LABEL: (&str, &str) = ("managed-by", "nebari-mlflow-webhook-listener");
