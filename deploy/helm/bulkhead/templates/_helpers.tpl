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
