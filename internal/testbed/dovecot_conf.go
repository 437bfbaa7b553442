//go:build unix

package testbed

import "text/template"

// dovecotConf is a whole Dovecot 2.3 configuration. A block must not be written
// on one line; Dovecot refuses that.
var dovecotConf = template.Must(template.New("dovecot.conf").Parse(`
base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/run
log_path = {{.Dir}}/log
protocols = imap
listen = 127.0.0.1
haproxy_trusted_networks = 127.0.0.0/8
login_trusted_networks = {{.TrustedNetworks}}
disable_plaintext_auth = no
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

# All clients of a test come from one address: no limit and no penalty for it.
mail_max_userip_connections = 0
auth_failure_delay = 0
service anvil {
  client_limit = 10000
  chroot =
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}

service imap-login {
  # One process serves many logins; a process for each would cost 10 ms.
  service_count = 0
  process_min_avail = 1
  client_limit = 4000
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
service imap {
  process_limit = 3000
}
service auth {
  client_limit = 10000
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
# master_user=%u: otherwise the ACL plugin hides INBOX from a master login.
userdb {
  driver = static
  args = uid={{.UID}} gid={{.GID}} home={{.Dir}}/mail/%u master_user=%u
}

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
  mail_max_userip_connections = 0
  mail_plugins = acl quota imap_acl imap_quota imap_zlib
  imap_metadata = yes
}
plugin {
  acl = vfile
  acl_shared_dict = file:{{.Dir}}/mail/shared-mailboxes
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:storage={{.Quota}}
  quota_grace = 0%
}
{{.Settings}}
`))
