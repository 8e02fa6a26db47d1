#!/bin/sh
# Installs what the tests and the demo need besides Go. Quick and quiet when it
# is all there; on a machine without apt it says what to install.
set -eu

packages="ffmpeg gcc make pkg-config libc6-dev
gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-rtsp libgstrtspserver-1.0-dev
libgstreamer-plugins-base1.0-dev glib-networking vlc-bin vlc-plugin-base vlc-plugin-access-extra chromium
iproute2 ethtool"

if ! command -v go >/dev/null; then
	echo "setup: Go is missing: see the Go documentation" >&2
	exit 1
fi
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	for program in ffmpeg ffprobe gcc pkg-config gst-launch-1.0 vlc chromium ip ethtool; do
		command -v "$program" >/dev/null || missing="${missing:-} $program"
	done
	pkg-config --exists gstreamer-rtsp-server-1.0 2>/dev/null || missing="${missing:-} gst-rtsp-server(headers)"
	[ -z "${missing:-}" ] && exit 0
	echo "setup: no apt here; tests that need these skip until they are installed:$missing" >&2
	exit 0
fi

missing=
for package in $packages; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "setup: neither root nor sudo; please install:$missing" >&2
		exit 1
	fi
	as_root="sudo"
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# $missing is a list, meant to be split.
# shellcheck disable=SC2086
if ! { $as_root apt-get update && $as_root apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "setup: apt-get failed; the packages are:$missing" >&2
	exit 1
fi
