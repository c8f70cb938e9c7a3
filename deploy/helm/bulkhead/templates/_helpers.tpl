{{/* Labels of everything; what tells controller and agent apart is added by each. */}}
{{- define "bulkhead.labels" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "bulkhead.image" -}}
{{ .root.Values.image.repository }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "bulkhead.log" -}}
- {name: BULKHEAD_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: BULKHEAD_LOG_FORMAT, value: {{ .Values.logFormat | quote }}}
- {name: BULKHEAD_TRUST_DOMAIN, value: {{ .Values.trustDomain | quote }}}
{{- end }}

{{/* Arguments, mount and volume of the SPIFFE Workload API; nothing with the built-in authority. */}}
{{- define "bulkhead.spiffe.args" -}}
{{- if eq .Values.certificates.source "spiffe" }}
- --certificates=spiffe
- --spiffe-endpoint-socket=unix:///run/spiffe/{{ .Values.certificates.spiffe.socketName }}
{{- end }}
{{- end }}

{{- define "bulkhead.spiffe.mount" -}}
{{- if eq .Values.certificates.source "spiffe" }}
- {name: spiffe, mountPath: /run/spiffe, readOnly: true}
{{- end }}
{{- end }}

{{- define "bulkhead.spiffe.volume" -}}
{{- if eq .Values.certificates.source "spiffe" }}
{{- with .Values.certificates.spiffe }}
{{- if .csiDriver }}
- {name: spiffe, csi: {driver: {{ .csiDriver }}, readOnly: true}}
{{- else }}
- {name: spiffe, hostPath: {path: {{ .hostPath }}, type: Directory}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
