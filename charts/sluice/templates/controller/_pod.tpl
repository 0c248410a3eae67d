{{/* The edge's pod, the same for a Deployment and a DaemonSet. */}}

{{- define "sluice.edge.template" -}}
{{- $v := .Values.controller -}}
metadata:
  labels:
    {{- include "sluice.labels" (list . "controller") | nindent 4 }}
    {{- with $v.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "sluice.edge.account" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- include "sluice.imagePullSecrets" . | nindent 2 }}
  securityContext:
    {{- include "sluice.edge.podSecurityContext" . | nindent 4 }}
  terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
  {{- if $v.hostNetwork }}
  hostNetwork: true
  {{- end }}
  dnsPolicy: {{ ternary "ClusterFirstWithHostNet" $v.dnsPolicy (and $v.hostNetwork (eq $v.dnsPolicy "ClusterFirst")) }}
  {{- with $v.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.hostAliases }}
  hostAliases:
    {{- tpl (toYaml .) $ | nindent 4 }}
  {{- end }}
  {{- with $v.hostname }}
  hostname: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if $v.shareProcessNamespace }}
  shareProcessNamespace: true
  {{- end }}
  {{- $initial := and $v.nodeDirectory.hostPath $v.nodeDirectory.prepare }}
  {{- if or $initial $v.extraInitContainers }}
  initContainers:
  {{- if $initial }}
  - name: prepare
    image: {{ include "sluice.image" (list . $v.image) }}
    imagePullPolicy: {{ $v.image.pullPolicy }}
    command: [chown, {{ printf "%v:%v" $v.image.runAsUser $v.image.runAsGroup | quote }}, /var/lib/sluice]
    securityContext:
      runAsNonRoot: false
      runAsUser: 0
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN]}
    volumeMounts:
    - {name: node, mountPath: /var/lib/sluice}
  {{- end }}
  {{- with $v.extraInitContainers }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
  {{- end }}
  containers:
  {{- include "sluice.edge.container" . | nindent 2 }}
  {{- with $v.extraContainers }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
  volumes:
  {{- include "sluice.volumes" (list . "edge") | nindent 2 }}
  # Says to the watcher on which Node this pod runs. The API server takes it for nothing else.
  - name: enrol
    projected:
      defaultMode: 0440
      sources:
      - serviceAccountToken: {path: token, audience: sluice, expirationSeconds: 3600}
  - name: node
    {{- if $v.nodeDirectory.hostPath }}
    hostPath: {path: {{ $v.nodeDirectory.hostPath }}, type: DirectoryOrCreate}
    {{- else if $v.nodeDirectory.sizeLimit }}
    emptyDir: {sizeLimit: {{ $v.nodeDirectory.sizeLimit }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- with $v.extraVolumes }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
  {{- include "sluice.placement" (list . "controller" $v) | nindent 2 }}
{{- end -}}

{{/* A DaemonSet's pod is its node; of a Deployment two pods may share one. */}}
{{- define "sluice.edge.node" -}}
{{- ternary "$(NODE_NAME)" "$(POD_NAME)" (eq .Values.controller.kind "DaemonSet") -}}
{{- end -}}

{{- define "sluice.edge.podSecurityContext" -}}
{{- $ours := dict "fsGroup" .Values.controller.image.runAsGroup -}}
{{- $theirs := deepCopy .Values.controller.podSecurityContext -}}
{{- $sysctls := default list $theirs.sysctls -}}
{{- range $name, $value := .Values.controller.sysctls -}}
{{- $sysctls = append $sysctls (dict "name" $name "value" (toString $value)) -}}
{{- end -}}
{{- if $sysctls }}{{ $_ := set $theirs "sysctls" $sysctls }}{{ end -}}
{{ toYaml (merge $theirs $ours) }}
{{- end -}}

{{- define "sluice.edge.container" -}}
{{- $v := .Values.controller -}}
- name: {{ $v.containerName }}
  image: {{ include "sluice.image" (list . $v.image) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [sluice, applier]
  args:
  - --node
  - {{ include "sluice.edge.node" . }}
  - --group
  - {{ $v.group | quote }}
  - --directory
  - /var/lib/sluice
  - --http-port
  - {{ include "sluice.httpPort" . | quote }}
  - --https-port
  - {{ include "sluice.httpsPort" . | quote }}
  - --health-port
  - {{ include "sluice.healthPort" . | quote }}
  - --enrol-token
  - /etc/sluice/enrol/token
  - --drain-seconds
  - {{ max 1 (sub (int $v.terminationGracePeriodSeconds) 20) | quote }}
  {{- include "sluice.busArguments" . | nindent 2 }}
  {{- include "sluice.flagArguments" . | nindent 2 }}
  env:
  {{- include "sluice.env" . | nindent 2 }}
  {{- with $v.extraEnvs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  ports:
  {{- include "sluice.edge.ports" . | nindent 2 }}
  {{- with $v.lifecycle }}
  lifecycle:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- range $probe := list "livenessProbe" "readinessProbe" "startupProbe" }}
  {{- with get $v $probe }}
  {{ $probe }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with $v.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $v.resizePolicy (semverCompare ">=1.33.0-0" .Capabilities.KubeVersion.Version) }}
  resizePolicy:
    {{- toYaml $v.resizePolicy | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "sluice.edge.securityContext" . | nindent 4 }}
  volumeMounts:
  {{- include "sluice.volumeMounts" . | nindent 2 }}
  - {name: enrol, mountPath: /etc/sluice/enrol, readOnly: true}
  - {name: node, mountPath: /var/lib/sluice}
  {{- with $v.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "sluice.edge.securityContext" -}}
{{- with .Values.controller.containerSecurityContext -}}
{{ toYaml . }}
{{- else -}}
{{- with .Values.controller.image -}}
runAsNonRoot: {{ .runAsNonRoot }}
runAsUser: {{ .runAsUser }}
runAsGroup: {{ .runAsGroup }}
allowPrivilegeEscalation: {{ .allowPrivilegeEscalation }}
readOnlyRootFilesystem: {{ .readOnlyRootFilesystem }}
{{- with .seccompProfile }}
seccompProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
# nginx' file capability asks for it: without, the program does not start.
capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.edge.ports" -}}
{{- $v := .Values.controller -}}
{{- range $name, $port := dict "http" (include "sluice.httpPort" .) "https" (include "sluice.httpsPort" .) }}
- name: {{ $name }}
  containerPort: {{ $port }}
  protocol: TCP
  {{- if $v.hostPort.enabled }}
  hostPort: {{ get $v.hostPort.ports $name | default $port }}
  {{- end }}
{{- end }}
- name: {{ $v.metrics.portName }}
  containerPort: {{ include "sluice.healthPort" . }}
  protocol: TCP
{{- range $protocol, $map := dict "tcp" .Values.tcp "udp" .Values.udp }}
{{- range $port, $_ := $map }}
- name: {{ include "sluice.portName" (list $ $port $protocol) }}
  containerPort: {{ $port }}
  protocol: {{ upper $protocol }}
  {{- if $v.hostPort.enabled }}
  hostPort: {{ $port }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* (root, port, tcp or udp) */}}
{{- define "sluice.portName" -}}
{{- $prefix := (index . 0).Values.portNamePrefix -}}
{{- ternary (printf "%s-%v-%s" $prefix (index . 1) (index . 2)) (printf "%v-%s" (index . 1) (index . 2)) (not (empty $prefix)) -}}
{{- end -}}
