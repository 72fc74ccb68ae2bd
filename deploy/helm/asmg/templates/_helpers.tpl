{{/* Names: of the release, at most 40 characters, so that there is room for what is appended. */}}
{{- define "asmg.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "asmg.secret" -}}
{{- default (include "asmg.fullname" .) .Values.existingSecret -}}
{{- end -}}

{{- define "asmg.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "asmg.labels" -}}
{{ include "asmg.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "asmg.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* What all pods have: no root, no token, and none of the variables that Kubernetes makes of Services. Those of a
Service named asmg are called ASMG_PORT and so on, and the service would take them for its settings. */}}
{{- define "asmg.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "asmg.container" -}}
image: {{ include "asmg.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Spread over hosts and zones, as far as there are some. */}}
{{- define "asmg.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "asmg.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
{{- end -}}

{{/* Restarts pods when their settings change. */}}
{{- define "asmg.annotations" -}}
checksum/settings: {{ printf "%s%s%s%s" (toJson .Values.settings) .Values.features .Values.postgresDsn .Values.redisUrl | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "asmg.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "asmg.fullname" . }}
  - secretRef:
      name: {{ include "asmg.secret" . }}
{{- end -}}

{{- define "asmg.variables" -}}
{{- if .Values.features }}
- name: ASMG_FEATURES
  value: /etc/asmg/features.toml
{{- end }}
{{- if .Values.deletionJournal.existingClaim }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: ASMG_DELETION_JOURNAL
  value: /var/lib/asmg-deletions/$(POD_NAME).jsonl
{{- end }}
- name: ASMG_DATA_DIR
  value: /var/lib/asmg
- name: NUMBA_CACHE_DIR
  value: /var/lib/asmg/numba
{{- end -}}

{{- define "asmg.mounts" -}}
- name: data
  mountPath: /var/lib/asmg
- name: tmp
  mountPath: /tmp
{{- if .Values.features }}
- name: features
  mountPath: /etc/asmg
  readOnly: true
{{- end }}
{{- if .Values.deletionJournal.existingClaim }}
- name: deletions
  mountPath: /var/lib/asmg-deletions
{{- end }}
{{- end -}}

{{- define "asmg.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if .Values.features }}
- name: features
  configMap:
    name: {{ include "asmg.fullname" . }}-features
{{- end }}
{{- if .Values.deletionJournal.existingClaim }}
- name: deletions
  persistentVolumeClaim:
    claimName: {{ .Values.deletionJournal.existingClaim }}
{{- end }}
{{- end -}}
