{{/* A dict of `root`, `name`, `values` (controller.service or its `internal`), `labels`, `type`, `ports`, `targets`: one Service before the edge. */}}
{{- define "sluice.edge.service" -}}
{{- $root := .root -}}
{{- $s := .values -}}
{{- $all := $root.Values.controller.service -}}
{{- $targets := .targets -}}
{{- $ports := .ports -}}
{{- $public := or (eq .type "LoadBalancer") (eq .type "NodePort") -}}
{{- $type := .type -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "sluice.metadata" (list $root "controller" .name) | nindent 2 }}
    {{- with $all.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $s.annotations }}
  annotations:
    {{- tpl (toYaml .) $root | nindent 4 }}
  {{- end }}
spec:
  type: {{ $type }}
  {{- include "sluice.serviceFields" $s | nindent 2 }}
  {{- if $public }}
  {{- include "sluice.publicFields" $s | nindent 2 }}
  {{- end }}
  {{- if and $s.trafficDistribution (semverCompare ">=1.31.0-0" $root.Capabilities.KubeVersion.Version) }}
  trafficDistribution: {{ $s.trafficDistribution }}
  {{- end }}
  {{- if eq $type "LoadBalancer" }}
  {{- include "sluice.loadBalancerFields" $s | nindent 2 }}
  {{- end }}
  selector:
    {{- include "sluice.selector" (list $root "controller") | nindent 4 }}
  ports:
  {{- range $name, $on := dict "http" $all.enableHttp "https" $all.enableHttps }}
  {{- if $on }}
  - name: {{ $name }}
    port: {{ get $ports $name }}
    targetPort: {{ get $targets $name }}
    protocol: TCP
    {{- if $s.appProtocol }}
    appProtocol: {{ $name }}
    {{- end }}
    {{- if and $public (get $s.nodePorts $name) }}
    nodePort: {{ get $s.nodePorts $name }}
    {{- end }}
  {{- end }}
  {{- end }}
  {{- range $protocol, $map := dict "tcp" $root.Values.tcp "udp" $root.Values.udp }}
  {{- $nodePorts := get $s.nodePorts $protocol }}
  {{- range $port, $_ := $map }}
  - name: {{ include "sluice.portName" (list $root $port $protocol) }}
    port: {{ $port }}
    targetPort: {{ include "sluice.portName" (list $root $port $protocol) }}
    protocol: {{ upper $protocol }}
    {{- if and $public (get $nodePorts $port) }}
    nodePort: {{ get $nodePorts $port }}
    {{- end }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* What any Service may say. */}}
{{- define "sluice.serviceFields" -}}
{{- range $field := list "clusterIP" "sessionAffinity" "ipFamilyPolicy" }}
{{- with get $ $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- range $field := list "clusterIPs" "externalIPs" "ipFamilies" }}
{{- with get $ $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What NodePort and LoadBalancer say besides. */}}
{{- define "sluice.publicFields" -}}
{{- with .externalTrafficPolicy }}
externalTrafficPolicy: {{ . }}
{{- end }}
{{- with .healthCheckNodePort }}
healthCheckNodePort: {{ . }}
{{- end }}
{{- end -}}

{{/* What only a LoadBalancer says. */}}
{{- define "sluice.loadBalancerFields" -}}
{{- range $field := list "loadBalancerIP" "loadBalancerClass" }}
{{- with get $ $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- with .loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey . "allocateLoadBalancerNodePorts" }}
allocateLoadBalancerNodePorts: {{ .allocateLoadBalancerNodePorts }}
{{- end }}
{{- end -}}

{{/* A dict of `root`, `component`, `name`, `values`, `port` (name, port, target): a Service of one port. */}}
{{- define "sluice.smallService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "sluice.metadata" (list .root .component .name) | nindent 2 }}
    {{- with .values.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .values.type }}
  {{- include "sluice.serviceFields" .values | nindent 2 }}
  {{- if ne .values.type "ClusterIP" }}
  {{- include "sluice.publicFields" .values | nindent 2 }}
  {{- end }}
  {{- if eq .values.type "LoadBalancer" }}
  {{- include "sluice.loadBalancerFields" .values | nindent 2 }}
  {{- end }}
  ports:
  - name: {{ index .port 0 }}
    port: {{ index .port 1 }}
    targetPort: {{ index .port 2 }}
    protocol: TCP
    {{- with index .port 3 }}
    appProtocol: {{ . }}
    {{- end }}
    {{- if and .values.nodePort (ne .values.type "ClusterIP") }}
    nodePort: {{ .values.nodePort }}
    {{- end }}
  selector:
    {{- include "sluice.selector" (list .root (default .component .selects)) | nindent 4 }}
{{- end -}}
