{{/* nats-server's configuration. Whom to believe is in auth.conf, which the keys job makes. */}}
{{- define "sluice.natsConfiguration" -}}
{{- $name := include "sluice.nats" . -}}
server_name: $POD_NAME
listen: "0.0.0.0:4222"
http: "0.0.0.0:8222"
pid_file: "/tmp/nats.pid"
# nats-server's default (1 MiB) is smaller than the largest legal Kubernetes object (1.5 MiB).
max_payload: 8388608
write_deadline: 10s
lame_duck_grace_period: 5s
lame_duck_duration: 30s
tls { cert_file: "/etc/sluice/nats/tls.crt", key_file: "/etc/sluice/nats/tls.key", timeout: 5 }
jetstream { store_dir: "/data/store", max_memory_store: {{ .Values.nats.maxMemoryStore }}, max_file_store: {{ .Values.nats.maxFileStore }}, sync_interval: 10s }
{{- if gt (int .Values.nats.replicas) 1 }}
cluster {
  name: {{ $name }}
  listen: "0.0.0.0:6222"
  # Only a server with a certificate of our CA is let in.
  tls { cert_file: "/etc/sluice/nats/tls.crt", key_file: "/etc/sluice/nats/tls.key", ca_file: "/etc/sluice/nats/ca.crt", verify: true, timeout: 5 }
  routes: [
    {{- range $i := until (int .Values.nats.replicas) }}
    "nats://{{ $name }}-{{ $i }}.{{ $name }}.{{ include "sluice.namespace" $ }}.svc:6222"
    {{- end }}
  ]
}
{{- end }}
# nats-server takes this as a path from the directory of this file.
include "../nats/auth.conf"
{{- end -}}
