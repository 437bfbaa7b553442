#!/usr/bin/env bash
# Benchmarks imapgate against HAProxy (TCP, TLS offload), nginx mail and Dovecot's login proxy: the same load
# generator, the same stub backend, one run. Needs root to install their packages. Compare ratios within one
# run; absolute figures depend on the machine.
#
#   compare.sh                              imapgate in the modes splice and resume, in resume with an audit
#                                           record for each command ("record"), with all limits shared through
#                                           Redis ("limits"), and its peers
#   compare.sh NAME=HOST:PORT:PID …         also proxies that already run: TLS on HOST:PORT, plain upstream to
#                                           the stub on 127.0.0.1:31000, any user, password "pw"
#   PEERS=DIR compare.sh …                  the peers of Debian 13 (HAProxy 3.0, nginx 1.26, Dovecot 2.4) in the
#                                           root folder DIR, which .ci/root creates if it does not exist
#   ROUNDS=3 SECONDS_EACH=3 IDLE=2000 WORK="login ping noop fetch append idle" ONLY="imapgate resume" compare.sh …
#
# Prints one row for each proxy and workload: medians over the rounds.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROUNDS=${ROUNDS:-3} SECS=${SECONDS_EACH:-3} IDLE=${IDLE:-2000} WORK=${WORK:-login ping noop fetch append idle}
PEERS=${PEERS:-}
[ -z "$PEERS" ] || "$here/../../.ci/root" debian13 "$PEERS" >&2
bed=$(mktemp -d ${PEERS:+"$PEERS/tmp/bench.XXXXXX"}); chmod 755 "$bed"
in=${bed#"$PEERS"}                       # the same folder as the peers see it
peer() { if [ -n "$PEERS" ]; then echo chroot "$PEERS" "$@"; else echo "$@"; fi; }
pids=()
trap 'for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done; sleep 0.3; rm -rf "$bed"' EXIT

need=()
if [ -z "$PEERS" ]; then
  command -v haproxy >/dev/null || need+=(haproxy)
  command -v nginx >/dev/null || need+=(nginx-core)
  [ -e /usr/lib/nginx/modules/ngx_mail_module.so ] || need+=(libnginx-mod-mail)
  command -v dovecot >/dev/null || need+=(dovecot-imapd)
fi
command -v openssl >/dev/null || need+=(openssl)
command -v redis-server >/dev/null || need+=(redis-server)
if ((${#need[@]})); then
  # keep the packages from starting their services
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
(cd "$here" && go build -o "$bed/bench" . && go build -o "$bed/imapgate" ../../cmd/imapgate)

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$bed/key.pem" -out "$bed/cert.pem" \
  -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null
cat "$bed/cert.pem" "$bed/key.pem" >"$bed/both.pem"; chmod 644 "$bed"/*.pem

start() { # start NAME COMMAND… : runs COMMAND in the background and sets NAME_pid
  local name=$1; shift
  setsid "$@" >"$bed/$name.out" 2>&1 &
  pids+=($!); eval "${name}_pid=$!"
}
start stub "$bed/bench" stub -addr 127.0.0.1:31000

cat >"$bed/ha.cfg" <<X
global
  maxconn 9000
  nbthread 2
defaults
  mode tcp
  timeout client 1h
  timeout server 1h
  timeout connect 5s
frontend imaps
  bind 127.0.0.1:31103 ssl crt $in/both.pem
  default_backend b
backend b
  server s 127.0.0.1:31000
X
start haproxy $(peer haproxy -f "$in/ha.cfg")

mkdir -p "$bed/ng"
cat >"$bed/ng/nginx.conf" <<X
load_module /usr/lib/nginx/modules/ngx_mail_module.so;
worker_processes 2;
daemon off;
pid $in/ng/pid;
error_log $in/ng/error.log warn;
events { worker_connections 18000; }
http { access_log off;
  client_body_temp_path $in/ng/a; proxy_temp_path $in/ng/b; fastcgi_temp_path $in/ng/c; uwsgi_temp_path $in/ng/d; scgi_temp_path $in/ng/e;
  server { listen 127.0.0.1:31180; location /auth { add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port 31000; return 204; } } }
mail { auth_http 127.0.0.1:31180/auth; imap_capabilities IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE UIDPLUS; imap_auth plain login; proxy_timeout 1h;
  server { listen 127.0.0.1:31101 ssl; protocol imap; ssl_certificate $in/cert.pem; ssl_certificate_key $in/key.pem; ssl_protocols TLSv1.2 TLSv1.3; } }
X
start nginx $(peer nginx -c "$in/ng/nginx.conf")

mkdir -p "$bed/dp/run" "$bed/dp/state"
if [ -n "$PEERS" ]; then
  cat >"$bed/dp/dovecot.conf" <<X
dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
base_dir = $in/dp/run
state_dir = $in/dp/state
log_path = $in/dp/log
protocols {
  imap = yes
}
listen = 127.0.0.1
ssl = yes
ssl_server_cert_file = $in/cert.pem
ssl_server_key_file = $in/key.pem
ssl_min_protocol = TLSv1.2
mail_max_userip_connections = 0
mail_driver = sdbox
mail_path = ~/m
passdb static {
  fields {
    proxy = y
    host = 127.0.0.1
    port = 31000
    nopassword = y
  }
}
userdb static {
  fields {
    uid = nobody
    gid = nogroup
    home = $in/none
  }
}
service imap-login {
  restart_request_count = unlimited
  process_min_avail = 2
  process_limit = 2
  client_limit = 9000
  vsz_limit = unlimited
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = 31102
    ssl = yes
  }
}
service auth {
  client_limit = 30000
}
service anvil {
  client_limit = 30000
}
X
else
  cat >"$bed/dp/dovecot.conf" <<X
base_dir = $bed/dp/run
state_dir = $bed/dp/state
log_path = $bed/dp/log
protocols = imap
listen = 127.0.0.1
ssl = yes
ssl_cert = <$bed/cert.pem
ssl_key = <$bed/key.pem
ssl_min_protocol = TLSv1.2
mail_max_userip_connections = 0
passdb {
  driver = static
  args = proxy=y host=127.0.0.1 port=31000 nopassword=y
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=$bed/none
}
service imap-login {
  service_count = 0
  process_min_avail = 2
  process_limit = 2
  client_limit = 9000
  vsz_limit = 0
  inet_listener imap {
    port = 0
  }
  inet_listener imaps {
    port = 31102
    ssl = yes
  }
}
service auth {
  client_limit = 30000
}
service anvil {
  client_limit = 30000
}
X
fi
start dovecot $(peer dovecot -F -c "$in/dp/dovecot.conf")

cat >"$bed/imapgate.yaml" <<X
listeners: [{address: "127.0.0.1:31104", tls: implicit}]
tls: {certificates: [{cert: $bed/cert.pem, key: $bed/key.pem}]}
routing: {source: static, static: {default: stub}}
backends: {stub: {address: "127.0.0.1:31000", tls: none}}
audit: {path: $bed/audit}
admin: {address: "127.0.0.1:31143"}
X
start imapgate "$bed/imapgate" serve --config "$bed/imapgate.yaml"
sed -e 's/31104/31105/; s/31143/31144/; s/tls: none}/tls: none, mode: resume}/; s/audit}/audit2}/' "$bed/imapgate.yaml" >"$bed/resume.yaml"
start resume "$bed/imapgate" serve --config "$bed/resume.yaml"
sed -e 's/31104/31108/; s/31143/31146/; s/tls: none}/tls: none, mode: resume}/; s/audit}/audit4, commands: all}/' "$bed/imapgate.yaml" >"$bed/record.yaml"
start record "$bed/imapgate" serve --config "$bed/record.yaml"
start redis redis-server --bind 127.0.0.1 --port 31106 --save "" --dir "$bed"
sed -e 's/31104/31107/; s/31143/31145/; s/audit}/audit3}/' "$bed/imapgate.yaml" >"$bed/limits.yaml"
cat >>"$bed/limits.yaml" <<X
redis: {addresses: ["127.0.0.1:31106"]}
limits:
  exempt_networks: []
  connections: {per_user_address: 1000, per_user: 1000, per_address: 100000, preauth_per_address: 10000, total: 100000,
    new_per_minute: 1000000, new_burst: 1000000}
X
start limits "$bed/imapgate" serve --config "$bed/limits.yaml"
sleep 1.5

targets=("imapgate 127.0.0.1:31104 $imapgate_pid" "resume 127.0.0.1:31105 $resume_pid" "record 127.0.0.1:31108 $record_pid" "limits 127.0.0.1:31107 $limits_pid" "haproxy 127.0.0.1:31103 $haproxy_pid" "nginx 127.0.0.1:31101 $nginx_pid" "dovecot 127.0.0.1:31102 $dovecot_pid")
for t in "$@"; do
  name=${t%%=*} rest=${t#*=}
  targets+=("$name ${rest%:*} ${rest##*:}")
done

if [ -n "${ONLY:-}" ]; then
  kept=()
  for t in "${targets[@]}"; do [[ " $ONLY " == *" ${t%% *} "* ]] && kept+=("$t"); done
  targets=("${kept[@]}")
fi

for w in $WORK; do
  for r in $(seq "$ROUNDS"); do
    for t in "${targets[@]}"; do
      set -- $t
      case $w in
        login)  a="login -c 8 -d ${SECS}s" ;;
        ping)   a="ping -d ${SECS}s" ;;
        noop)   a="noop -c 32 -d ${SECS}s" ;;
        fetch)  a="fetch -c 4 -d ${SECS}s" ;;
        append) a="append -c 4 -d ${SECS}s" ;;
        idle)   [ "$r" = 1 ] || continue   # memory is measured on the first, fresh round
                n=$IDLE; [ "$1" = nginx ] && n=$((IDLE / 4))   # nginx takes 45 ms a login
                a="idle -n $n" ;;
      esac
      set -- "$1" "$2" "$3" $a
      name=$1 addr=$2 pid=$3; shift 3; mode=$1; shift
      echo "$w $name $(timeout 180 "$bed/bench" "$mode" -addr "$addr" -tls -pids "$pid" "$@" 2>&1 | tr '\n' ' ')"
    done
  done
done | tee "$bed/raw" >&2
python3 - "$bed/raw" <<'P'
import re, statistics, sys
rows = {}
for line in open(sys.argv[1]):
    w, name, *kv = line.split()
    rows.setdefault(w, {}).setdefault(name, []).append(dict(x.split("=", 1) for x in kv if re.match(r"^\w+=[\d.]+$", x)))
show = {"login": ["ops_s", "p50_ms", "p99_ms", "cpu_us_op", "errors"], "ping": ["p50_ms", "p99_ms", "cpu_us_op"],
        "noop": ["ops_s", "p50_ms", "cpu_us_op"], "fetch": ["MB_s", "cpu_ms_MB"], "append": ["MB_s", "cpu_ms_MB"],
        "idle": ["kb_session", "idle_cpu_ms_s"]}
for w, names in rows.items():
    print(f"\n{w:8}" + "".join(f"{k:>14}" for k in show[w]))
    for name, runs in names.items():
        print(f"{name:8}" + "".join(f"{statistics.median([float(r[k]) for r in runs if k in r]):14.3f}" if any(k in r for r in runs) else f"{'-':>14}" for k in show[w]))
P
