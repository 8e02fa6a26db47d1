#!/bin/sh
# Makes the movies of this folder again. Needs ffmpeg with libx264 and libx265.
#
# Pictures and sound come from ffmpeg's own generators. The sequence numbers of
# each hint track begin at random, as ffmpeg's always do, so two runs differ in
# those bytes; the media in them is the same.
set -eu
cd "$(dirname "$0")"

seconds=12
picture="testsrc2=size=320x180:rate=25:duration=$seconds"
# A sweep: no two audio frames are alike, so a lost one cannot go unseen.
sound="aevalsrc='0.2*sin(2*PI*(200+40*t)*t)|0.2*sin(2*PI*(300+25*t)*t)':s=44100:d=$seconds"
# No noise substitution: what a decoder makes of that depends on all it decoded
# before, and a client that joins late could not be compared with one that did not.
aac="-c:a aac -b:a 64k -aac_pns 0"
gop="-g 25 -keyint_min 25 -sc_threshold 0" # a key frame a second: whoever joins late sees soon
# One thread and no encoder names: the same encoder makes the same pictures.
exact="-threads 1 -flags:v +bitexact -flags:a +bitexact"

movie() { # movie NAME ARGUMENTS: a movie with picture and sound, hinted
	name=$1
	shift
	ffmpeg -hide_banner -loglevel error -y \
		-f lavfi -i "$picture" -f lavfi -i "$sound" -map 0:v -map 1:a \
		"$@" $aac $exact -movflags rtphint "$name"
}

movie h264-aac.mp4 -c:v libx264 -preset medium -profile:v main -bf 0 -b:v 300k $gop -pix_fmt yuv420p
movie h264-bframes-aac.mp4 -c:v libx264 -preset medium -profile:v main -bf 2 -b:v 300k $gop -pix_fmt yuv420p
movie h264-aac.mov -c:v libx264 -preset medium -profile:v main -bf 0 -b:v 300k $gop -pix_fmt yuv420p
movie mpeg4-aac.mp4 -c:v mpeg4 -b:v 350k $gop
movie hevc-aac.mp4 -c:v libx265 -preset fast -b:v 250k -tag:v hvc1 -pix_fmt yuv420p \
	-x265-params keyint=25:min-keyint=25:scenecut=0:bframes=0:log-level=error

ffmpeg -hide_banner -loglevel error -y -f lavfi -i "$sound" $aac $exact \
	-movflags rtphint aac.mp4
