#!/usr/bin/env bash
# Makes ext4.img.gz, the filesystem that `marsd demo` writes onto the replicated
# device. The result depends on the version of e2fsprogs only (1.47.0 made the one
# in the repository): files, times, UUID and hash seed are fixed.
#
#   ./make-image.sh          needs mke2fs, debugfs, e2fsck, gzip
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C TZ=UTC E2FSPROGS_FAKE_TIME=1704067200 # 2024-01-01
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/files/numbers" "$work/files/data"
(
	cd "$work/files"
	cat >README.txt <<'TEXT'
This filesystem was written through NBD onto a device that MARS replicates.
If you read this on another node, every block of it went into a transaction
logfile, over the network, into that node's copy of the logfile, and from there
onto that node's disk, in the order in which it was written.

sha256sum -c SHA256SUMS tells whether all of it has arrived.
TEXT
	awk 'BEGIN { for (n = 2; n < 60000; n++) { for (d = 2; d * d <= n; d++) if (n % d == 0) break; if (d * d > n) print n } }' >numbers/primes.txt
	awk 'BEGIN { for (n = 0; n < 2500; n++) printf "%d %d %d\n", n, n * n, n * n * n }' >numbers/powers.txt
	# Data that does not compress: a chain of digests.
	digest=mars
	for _ in $(seq 768); do
		digest=$(printf %s "$digest" | sha256sum | cut -d' ' -f1)
		printf "$(sed 's/../\\x&/g' <<<"$digest")"
	done >data/random.bin
	find . -type f ! -name SHA256SUMS | sort | sed 's|^\./||' | xargs sha256sum >SHA256SUMS
	find . -exec touch -h -d @$E2FSPROGS_FAKE_TIME {} +
)
img=$work/ext4.img
truncate -s 16M "$img"
uuid=6d617273-6465-4d6f-8000-000000000001
mke2fs -q -F -t ext4 -b 4096 -m 0 -J size=4 -L marsdemo -U $uuid \
	-E hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -O ^metadata_csum_seed,^orphan_file -d "$work/files" "$img"
# mke2fs -d takes times and owners from the files; the creation and change times are ours to fix.
for f in / README.txt SHA256SUMS numbers numbers/primes.txt numbers/powers.txt data data/random.bin; do
	printf 'sif %s ctime @%d\nsif %s ctime_extra 0\nsif %s crtime @%d\nsif %s crtime_extra 0\nsif %s atime @%d\nsif %s atime_extra 0\nsif %s mtime_extra 0\nsif %s uid 0\nsif %s gid 0\n' \
		"$f" $E2FSPROGS_FAKE_TIME "$f" "$f" $E2FSPROGS_FAKE_TIME "$f" "$f" $E2FSPROGS_FAKE_TIME "$f" "$f" "$f" "$f"
done | debugfs -w -f /dev/stdin "$img" >/dev/null
e2fsck -fn "$img"
gzip -9nc "$img" >ext4.img.gz
sha256sum ext4.img.gz
ls -l ext4.img.gz
