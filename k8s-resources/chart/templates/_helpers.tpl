{{/* Names of the files whose objects belong to this installation, as JSON. */}}
{{- define "tenancy-fixer.files" -}}
{{- $settings := .Values.settings }}
{{- $files := list "base/service-account" "base/cluster-role" "base/priority-class" "base/deployment" "base/service" "base/pod-disruption-budget" "base/network-policy" "webhooks/mutating" "webhooks/validating" }}
{{- if .Values.createNamespace }}{{ $files = prepend $files "base/namespace" }}{{ end }}
{{- if eq .Values.certificates "own" }}{{ $files = append $files "base/certificates" }}{{ end }}
{{- if eq .Values.certificates "cert-manager" }}{{ $files = append $files "overlays/cert-manager/certificate" }}{{ end }}
{{- if ne (get $settings "gate" | default "off") "off" }}{{ $files = append $files "overlays/gate/cluster-role" }}{{ end }}
{{- if get $settings "image-pull-secrets" }}{{ $files = append $files "overlays/pull-secrets/role" }}{{ end }}
{{- if get $settings "gate-pull-secrets" }}{{ $files = append $files "overlays/gate-pull-secrets/cluster-role" }}{{ end }}
{{- if get $settings "page" }}{{ $files = append $files "overlays/page/cluster-role" }}{{ end }}
{{- toJson $files }}
{{- end }}

{{/* The settings file: what the values say, over what the base says. */}}
{{- define "tenancy-fixer.settings" -}}
{{- toYaml (mergeOverwrite (.Files.Get "files/base/settings.yaml" | fromYaml) (deepCopy .Values.settings)) }}
{{- end }}

{{/* Its name has a hash of the content, as kustomize's: changed settings roll the pods. */}}
{{- define "tenancy-fixer.configMap" -}}
tenancy-fixer-settings-{{ include "tenancy-fixer.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{/* A namespace of the files, as this installation has it. */}}
{{- define "tenancy-fixer.namespace" -}}
{{- if eq .name "kubeflow-extension" }}{{ .root.Release.Namespace }}
{{- else if eq .name "kubeflow" }}{{ get .root.Values.settings "kubeflow-namespace" | default "kubeflow" }}
{{- else }}{{ .name }}{{ end }}
{{- end }}

{{/* Changes the Deployment `object` to what the values say. */}}
{{- define "tenancy-fixer.deployment" -}}
{{- $root := .root }}
{{- $values := .root.Values }}
{{- $spec := .object.spec.template.spec }}
{{- $container := index $spec.containers 0 }}
{{- $_ := set .object.spec "replicas" $values.replicas }}
{{- $_ := set .object.spec.template.metadata.labels "app.kubernetes.io/name" "tenancy-fixer" }}
{{- $_ := set $container "image" (printf "%s:%s" $values.image.repository ($values.image.tag | default $root.Chart.AppVersion)) }}
{{- with $values.image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- with $values.imagePullSecrets }}{{ $_ := set $spec "imagePullSecrets" . }}{{ end }}
{{- with $values.nodeSelector }}{{ $_ := set $spec "nodeSelector" . }}{{ end }}
{{- with $values.tolerations }}{{ $_ := set $spec "tolerations" . }}{{ end }}
{{- if ne (get $values.settings "gate" | default "off") "off" }}{{ $_ := set $container.resources.limits "memory" "128Mi" }}{{ end }}
{{- with $values.resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- range $volume := $spec.volumes }}
{{- if eq $volume.name "settings" }}{{ $_ := set $volume.configMap "name" (include "tenancy-fixer.configMap" $root) }}{{ end }}
{{- end }}
{{- if ne $values.certificates "own" }}
{{- $added := ($root.Files.Get "files/overlays/own-certificate/deployment.yaml" | fromYaml).spec.template.spec }}
{{- $_ := mergeOverwrite $spec.securityContext $added.securityContext }}
{{- $of := index $added.containers 0 }}
{{- $_ := set $container "env" (concat $of.env $container.env) }}
{{- $_ := set $container "volumeMounts" (concat $of.volumeMounts $container.volumeMounts) }}
{{- $_ := set $spec "volumes" (concat $added.volumes $spec.volumes) }}
{{- end }}
{{- end }}

{{/* Changes the webhook configuration `object` to what the values say. */}}
{{- define "tenancy-fixer.webhooks" -}}
{{- $root := .root }}
{{- $closed := and (eq .object.kind "MutatingWebhookConfiguration") (get $root.Values.settings "owner-only") }}
{{- range $webhook := .object.webhooks }}
{{- $_ := set $webhook.clientConfig.service "namespace" $root.Release.Namespace }}
{{- if $closed }}{{ $_ := set $webhook "failurePolicy" "Fail" }}{{ end }}
{{- end }}
{{- if eq $root.Values.certificates "cert-manager" }}
{{- $_ := set .object.metadata "annotations" (dict "cert-manager.io/inject-ca-from" (printf "%s/tenancy-fixer" $root.Release.Namespace)) }}
{{- end }}
{{- end }}
