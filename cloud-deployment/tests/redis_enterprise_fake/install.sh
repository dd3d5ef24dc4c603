#!/bin/sh
# The installer of a FAKE of Redis Enterprise, for tests. It takes the options of the real one that are documented, and
# fails as the real one does if port 53 is taken or swap is on; instead of asking questions it fails.
set -eu

answers=
while [ $# -gt 0 ]; do
  case $1 in
    -y) answers=/dev/null ;;
    -c) answers=$2; shift ;;
    *) echo "FAKE: unknown option $1" >&2; exit 1 ;;
  esac
  shift
done
[ -n "$answers" ] || { echo "FAKE: would ask questions: give -y or -c" >&2; exit 1; }
while IFS='=' read -r question answer; do
  case $question=$answer in
    ignore_swap=yes|ignore_swap=no|systune=yes|systune=no|ntp=yes|ntp=no|firewall=yes|firewall=no) ;;
    rlcheck=yes|rlcheck=no|ignore_existing_osuser_osgroup=yes|ignore_existing_osuser_osgroup=no) ;;
    skip_updating_env_path=yes|skip_updating_env_path=no|ignore_master_version=yes|ignore_master_version=no) ;;
    *) echo "FAKE: unknown answer $question=$answer" >&2; exit 1 ;;
  esac
done < "$answers"
if ss --no-header --listening --udp --tcp --numeric 'sport = 53' | grep -q .; then
  echo "FAKE: port 53 is in use" >&2
  exit 1
fi
if [ "$(wc -l < /proc/swaps)" -gt 1 ] && ! grep -q '^ignore_swap=yes' "$answers"; then
  echo "FAKE: swap is enabled" >&2
  exit 1
fi
[ ! -e /opt/redislabs ] || { echo "FAKE: installed already" >&2; exit 1; }

useradd --system --user-group --no-create-home redislabs
mkdir -p /opt/redislabs/bin /etc/opt/redislabs /var/opt/redislabs
cp server.py /opt/redislabs/fake_server.py
cp self-signed.pem /etc/opt/redislabs/self-signed.pem
chown -R redislabs:redislabs /etc/opt/redislabs /var/opt/redislabs
printf '#!/bin/sh\necho "FAKE rladmin" >&2\nexit 1\n' > /opt/redislabs/bin/rladmin
chmod 755 /opt/redislabs/bin/rladmin
cat > /etc/systemd/system/rlec_supervisor.service <<'UNIT'
[Unit]
Description=FAKE of Redis Enterprise, for tests

[Service]
User=redislabs
ExecStart=/usr/bin/python3 /opt/redislabs/fake_server.py

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now rlec_supervisor.service
echo "FAKE of Redis Enterprise is installed"
