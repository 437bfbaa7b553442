//go:build unix

package testbed

import "text/template"

// dovecot23 is a complete Dovecot 2.3 configuration. Dovecot refuses a block that is
// written on one line.
var dovecot23 = template.Must(template.New("dovecot.conf").Parse(`
base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/run
log_path = {{.Dir}}/log
protocols = imap
listen = 127.0.0.1
haproxy_trusted_networks = 127.0.0.0/8
default_client_limit = 10000
default_internal_user = {{.InternalUser}}
default_internal_group = {{.InternalGroup}}
default_login_user = {{.LoginUser}}
first_valid_uid = 1
first_valid_gid = 1

ssl = yes
ssl_cert = <{{.Cert}}
ssl_key = <{{.Key}}
ssl_min_protocol = TLSv1.2

# All clients of a test come from one address: no penalty for it.
auth_failure_delay = 0
service anvil {
  client_limit = 10000
  chroot =
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}

service imap-login {
{{- if not .Root}}
  chroot =
{{- end}}
  inet_listener imap {
    port = {{.PlainPort}}
  }
  inet_listener imaps {
    port = {{.TLSPort}}
    ssl = yes
  }
  inet_listener imap-proxied {
    port = {{.ProxiedPort}}
    haproxy = yes
  }
  inet_listener imaps-proxied {
    port = {{.ProxiedTLSPort}}
    haproxy = yes
    ssl = yes
  }
}
service auth {
  client_limit = 10000
}

{{- if .Own}}
{{.Own}}
{{- else}}
login_trusted_networks = {{.TrustedNetworks}}
disable_plaintext_auth = no
# All clients of a test come from one address: no limit for it.
mail_max_userip_connections = 0
service imap-login {
  # One process serves many logins; a process for each would cost 10 ms.
  service_count = 0
  process_min_avail = 1
  client_limit = 4000
}
service imap {
  process_limit = 3000
  service_count = {{.LoginsPerProcess}}
  process_min_avail = {{.Processes}}
}
{{- if .Master}}
auth_master_user_separator = *
passdb {
  driver = passwd-file
  master = yes
  args = scheme=PLAIN {{.Dir}}/masters
}
{{- end}}
passdb {
{{- if .Users}}
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {{.Dir}}/users
{{- else}}
  driver = static
  args = password={{.Password}}
{{- end}}
}
{{- with .Tokens}}
auth_mechanisms = plain {{.Mechanisms}}
passdb {
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = {{$.Dir}}/oauth2
}
{{- end}}
# master_user=%u: otherwise the ACL plugin hides INBOX from a master login.
userdb {
  driver = static
  args = uid={{.UID}} gid={{.GID}} home={{.Dir}}/mail/%u master_user=%u
}
{{- end}}

mail_location = {{.Format}}:{{.Dir}}/mail/%u/mail
mail_fsync = never
# inotify does this at once; the kernel has a limit of watches.
mailbox_idle_check_interval = 1 secs
mail_attribute_dict = file:%h/attributes
mail_plugins = acl quota
namespace inbox {
  inbox = yes
  separator = /
}
namespace shared {
  type = shared
  prefix = shared/%%u/
  separator = /
  location = {{.Format}}:{{.Dir}}/mail/%%u/mail
  list = children
  subscriptions = no
}
protocol imap {
  mail_plugins = acl quota imap_acl imap_quota imap_zlib
  imap_metadata = yes
}
plugin {
  acl = vfile
  acl_shared_dict = file:{{.Dir}}/mail/shared-mailboxes
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:storage=%{if;%u;*;small*;{{.SmallQuota}};{{.Quota}}}
  quota_grace = 0%
}
{{- with .ClientRoots}}
ssl_ca = <{{.}}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_require_client_cert = yes
{{- end}}
{{.Settings}}
`))

// dovecot24 is the same configuration for Dovecot 2.4.
var dovecot24 = template.Must(template.New("dovecot.conf").Parse(`
dovecot_config_version = {{.Version}}
dovecot_storage_version = {{.Version}}
base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/run
log_path = {{.Dir}}/log
protocols {
  imap = yes
}
listen = 127.0.0.1
haproxy_trusted_networks = 127.0.0.0/8
default_client_limit = 10000
default_internal_user = {{.InternalUser}}
default_internal_group = {{.InternalGroup}}
default_login_user = {{.LoginUser}}
first_valid_uid = 1
first_valid_gid = 1

ssl = yes
ssl_server_cert_file = {{.Cert}}
ssl_server_key_file = {{.Key}}
ssl_min_protocol = TLSv1.2

# All clients of a test come from one address: no penalty for it.
auth_failure_delay = 0
service anvil {
  client_limit = 10000
  chroot =
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}

service imap-login {
{{- if not .Root}}
  chroot =
{{- end}}
  inet_listener imap {
    port = {{.PlainPort}}
  }
  inet_listener imaps {
    port = {{.TLSPort}}
    ssl = yes
  }
  inet_listener imap-proxied {
    port = {{.ProxiedPort}}
    haproxy = yes
  }
  inet_listener imaps-proxied {
    port = {{.ProxiedTLSPort}}
    haproxy = yes
    ssl = yes
  }
}
service auth {
  client_limit = 10000
}

{{- if .Own}}
{{.Own}}
{{- else}}
login_trusted_networks = {{.TrustedNetworks}}
auth_allow_cleartext = yes
# All clients of a test come from one address: no limit for it.
mail_max_userip_connections = 0
service imap-login {
  # One process serves many logins; a process for each would cost 10 ms.
  restart_request_count = unlimited
  process_min_avail = 1
  client_limit = 4000
}
service imap {
  process_limit = 3000
  restart_request_count = {{.LoginsPerProcess}}
  process_min_avail = {{.Processes}}
}
{{- if .Master}}
auth_master_user_separator = *
passdb masters {
  driver = passwd-file
  passwd_file_path = {{.Dir}}/masters
  default_password_scheme = PLAIN
  master = yes
}
{{- end}}
passdb users {
  default_password_scheme = PLAIN
{{- if .Users}}
  driver = passwd-file
  passwd_file_path = {{.Dir}}/users
{{- else}}
  driver = static
  passdb_static_password = {{.Password}}
{{- end}}
}
{{- with .Tokens}}
auth_mechanisms = plain {{.Mechanisms}}
oauth2 {
  introspection_mode = post
  introspection_url = {{.Introspection}}
  username_attribute = email
  active_attribute = active
  active_value = true
}
passdb oauth2 {
  mechanisms_filter = oauthbearer xoauth2
}
{{- end}}
# master_user: otherwise the ACL plugin hides INBOX from a master login.
userdb static {
  fields {
    uid = {{.UID}}
    gid = {{.GID}}
    home = {{.Dir}}/mail/%{user}
    master_user = %{user}
{{- if ne .Quota .SmallQuota}}
    quota_storage_size = %{user | if('*', 'small*', '{{.SmallQuota}}', '{{.Quota}}')}
{{- end}}
  }
}
{{- end}}

mail_driver = {{.Format}}
mail_path = ~/mail
mail_fsync = never
# inotify does this at once; the kernel has a limit of watches.
mailbox_idle_check_interval = 1 secs
mail_plugins {
  acl = yes
  quota = yes
}
mail_attribute {
  dict file {
    path = %{home}/attributes
  }
}
namespace inbox {
  inbox = yes
  separator = /
}
namespace shared {
  type = shared
  prefix = shared/$user/
  separator = /
  mail_path = {{.Dir}}/mail/%{owner_user}/mail
  list = children
  subscriptions = no
}
protocol imap {
  mail_plugins {
    imap_acl = yes
    imap_quota = yes
  }
  imap_metadata = yes
}
acl_driver = vfile
acl_sharing_map {
  dict file {
    path = {{.Dir}}/mail/shared-mailboxes
  }
}
quota "User quota" {
  storage_grace = 0
}
# A field of the userdb overrides this.
quota_storage_size = {{.Quota}}
{{- with .ClientRoots}}
ssl_server_ca_file = {{.}}
ssl_server_request_client_cert = yes
ssl_server_require_crl = no
auth_ssl_require_client_cert = yes
{{- end}}
{{.Settings24}}
`))
