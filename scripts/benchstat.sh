#!/bin/sh
# What a change does to the engine's hot functions: their Go benchmarks at a commit
# and in this tree, by turns, and benchstat's table of both.
# usage: scripts/benchstat.sh COMMIT ROUNDS PATTERN
set -eu
base=$1 rounds=$2 pattern=$3
cd "$(dirname "$0")/.."
root=$PWD out=$PWD/build/benchstat
rm -rf "$out"
mkdir -p "$out"
git worktree prune
git worktree add --quiet --detach "$out/base" "$base"
trap 'git worktree remove --force "$out/base"' EXIT
packages="engine engine/hint engine/wire"
for p in $packages; do
	name=$(echo "$p" | tr / -)
	(cd "$out/base" && go test -c -o "$out/$name.old" "./$p")
	go test -c -o "$out/$name.new" "./$p"
done
n=0
while [ $n -lt "$rounds" ]; do
	n=$((n + 1))
	for p in $packages; do
		name=$(echo "$p" | tr / -)
		for which in old new; do
			dir=$root/$p
			[ $which = new ] || dir=$out/base/$p
			echo "round $n of $rounds: $p, $which" >&2
			(cd "$dir" && "$out/$name.$which" -test.run '^$' -test.bench "$pattern") >>"$out/$which.txt"
		done
	done
done
go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da "$out/old.txt" "$out/new.txt"
