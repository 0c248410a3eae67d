{{/* The watcher's rights: docs/kubernetes.md has them, and a test shows that each is needed and no other is. */}}

{{- define "sluice.rules" -}}
- {apiGroups: [""], resources: [services, secrets, configmaps], verbs: [get, list, watch]}
- {apiGroups: [networking.k8s.io], resources: [ingresses], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {apiGroups: [networking.k8s.io], resources: [ingresses/status], verbs: [patch]}
- {apiGroups: [""], resources: [events], verbs: [get, create, patch]}
{{- end -}}

{{/* Without a Service or addresses to publish, those of the Nodes that edge pods run on go to Ingress status. */}}
{{- define "sluice.publishesNodes" -}}
{{- if not (or (include "sluice.flagValue" (list . "publish-service")) (include "sluice.flagValue" (list . "publish-status-address"))) }}yes{{ end -}}
{{- include "sluice.eachFurtherGroup" (list . "sluice.publishesNodes" "") | trim -}}
{{- end -}}

{{/* What only some flags need. */}}
{{- define "sluice.moreClusterRules" -}}
{{- if include "sluice.flagValue" (list . "watch-namespace-selector") }}
- {apiGroups: [""], resources: [namespaces], verbs: [list, watch]}
{{- end }}
{{- if include "sluice.publishesNodes" . }}
- {apiGroups: [""], resources: [nodes], verbs: [get]}
{{- end }}
{{- end -}}

{{- define "sluice.classRules" -}}
# Whose token an edge node shows.
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [networking.k8s.io], resources: [ingressclasses], verbs: [get, list, watch]}
{{- end -}}

{{- define "sluice.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "sluice.lease" . | quote }}]
  verbs: [get, update]
# A name cannot be demanded of what does not exist yet.
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
{{- end -}}

{{/* The watched namespace, where rights end there. */}}
{{- define "sluice.scope" -}}
{{- default (include "sluice.namespace" .) .Values.controller.scope.namespace -}}
{{- end -}}

{{/* Where rights end in one namespace: the ConfigMaps of a group's TCP and UDP services that are elsewhere, by name. */}}
{{- define "sluice.streamRights" -}}
{{- $labels := include "sluice.labels" (list . "watcher") }}
{{- range $protocol, $map := dict "tcp" .Values.tcp "udp" .Values.udp }}
{{- $where := (get $.Values.controller $protocol).configMapNamespace }}
{{- if and $map $where (not (has $where (list (include "sluice.namespace" $) (include "sluice.scope" $)))) }}
{{- $name := printf "%s-%s" (include "sluice.edge.fullname" $) $protocol }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $where }}
  labels:
    {{- $labels | nindent 4 }}
rules:
- {apiGroups: [""], resources: [configmaps], resourceNames: [{{ $name | quote }}], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $where }}
  labels:
    {{- $labels | nindent 4 }}
{{ include "sluice.toWatcher" (list $ "Role" $name) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (root, Role or ClusterRole, name): to the watcher. */}}
{{- define "sluice.toWatcher" -}}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ index . 1 }}
  name: {{ index . 2 }}
subjects:
- kind: ServiceAccount
  name: {{ include "sluice.watcher.serviceAccount" (index . 0) }}
  namespace: {{ include "sluice.namespace" (index . 0) }}
{{- end -}}
