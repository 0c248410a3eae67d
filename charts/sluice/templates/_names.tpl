{{/* The names of all objects. `fullname` is cut so that every name made of it stays below 63 characters. */}}

{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sluice.controller" -}}
{{- printf "%s-%s" (include "sluice.fullname" .) .Values.controller.name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.admission" -}}
{{- printf "%s-%s" (include "sluice.fullname" .) .Values.controller.admissionWebhooks.name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.admission.service" -}}
{{- printf "%s-admission" (include "sluice.controller" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.defaultBackend" -}}
{{- printf "%s-%s" (include "sluice.fullname" .) .Values.defaultBackend.name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.nats" -}}
{{- printf "%s-nats" (include "sluice.fullname" .) -}}
{{- end -}}

{{- define "sluice.seal" -}}
{{- printf "%s-seal" (include "sluice.fullname" .) -}}
{{- end -}}

{{- define "sluice.electionID" -}}
{{- default (printf "%s-leader" (include "sluice.fullname" .)) .Values.controller.electionID -}}
{{- end -}}

{{/* The Lease: the watcher appends the class unless that is nginx. */}}
{{- define "sluice.lease" -}}
{{- $class := include "sluice.flagValue" (list . "ingress-class") -}}
{{- $id := include "sluice.flagValue" (list . "election-id") -}}
{{- if or (not $class) (eq $class "nginx") -}}{{ $id }}{{- else -}}{{ printf "%s-%s" $id $class }}{{- end -}}
{{- end -}}

{{/* Service accounts. The watcher's is the one that `serviceAccount` describes. */}}
{{- define "sluice.watcher.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sluice.admission.serviceAccount" -}}
{{- $account := .Values.controller.admissionWebhooks.patch.serviceAccount -}}
{{- if $account.create -}}
{{- default (include "sluice.admission" .) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "sluice.defaultBackend.serviceAccount" -}}
{{- $account := .Values.defaultBackend.serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-backend" (include "sluice.fullname" .)) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/* (root, component): what selects its pods. */}}
{{- define "sluice.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sluice.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ include "sluice.component" . }}
{{- end -}}

{{/* (root, component): labels of its objects. */}}
{{- define "sluice.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ include "sluice.chart" $root }}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ include "sluice.name" $root }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (root, component, name suffix or full name): the metadata that all objects have. */}}
{{- define "sluice.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ include "sluice.namespace" $root }}
labels:
  {{- include "sluice.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{/* (root, image): registry/image:tag@digest. */}}
{{- define "sluice.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $root.Values.global.image.registry $image.registry -}}
{{- $name := default (ternary $image.image (printf "%s/%s" $registry $image.image) (empty $registry)) $image.repository -}}
{{- $tag := default $root.Chart.AppVersion $image.tag -}}
{{- printf "%s:%s%s" $name $tag (ternary "" (printf "@%s" $image.digest) (empty $image.digest)) -}}
{{- end -}}
