#!/bin/sh
# Runs in the guest: ckstore on real DAX memory. Each phase is one boot.
#
#   round-trip         create, save, list, verify and restore; the medium must be recognised as persistent memory
#   power-cut PERCENT  freezes a save after PERCENT of the time that one takes, and prints POWER-CUT-HERE
#   after-power-cut    with the same NVDIMM: what was acknowledged is there, the frozen save is there whole or not at all
#
# Prints what fails and ends with 1; the lines "ok: ..." say how far it came.

set -u

STORE=flash:/mnt/pmem/x.ck
# Lies on the NVDIMM beside the store: what the later boot compares with.
EXPECTED=/mnt/pmem/expected
# The host's, taken along: busybox's own compares so slowly that it would take most of the test's time.
COMPARE=/usr/local/bin/cmp
# Random, so that every page is stored, and enough that a save takes a multiple of the program's start.
MEMORY_MEBIBYTES=48

fail() {
    echo "FAILED: $*"
    exit 1
}

# expect WHAT COMMAND...
expect() {
    what=$1
    shift
    output=$("$@" 2>&1) || fail "$what: exit code $? of: $*
$output"
    echo "ok: $what"
}

make_memory() {
    dd if=/dev/urandom of="$1" bs=1M count=$MEMORY_MEBIBYTES 2>/dev/null || fail "no room for $1"
}

save() {
    expect "save $1" ckstore save $STORE "$1" --memory ram="$2"
}

# restore NAME FILE: the checkpoint holds exactly the bytes of the file.
restore() {
    rm -f /tmp/restored
    expect "restore $1" ckstore restore $STORE "$1" --region ram=/tmp/restored
    expect "$1 is restored byte by byte" $COMPARE "$2" /tmp/restored
}

is_listed() {
    output=$(ckstore list $STORE 2>&1) || fail "list: exit code $?
$output"
    echo "$output" | grep -q -w -- "$1"
}

centiseconds() {
    read -r uptime _ </proc/uptime
    echo "${uptime%.*}${uptime#*.}"
}

round_trip() {
    make_memory /tmp/first
    cp /tmp/first /tmp/second
    # A changed stretch, a stretch of zeros, and an unchanged rest.
    dd if=/dev/urandom of=/tmp/second bs=1M count=4 seek=3 conv=notrunc 2>/dev/null
    dd if=/dev/zero of=/tmp/second bs=1M count=4 seek=9 conv=notrunc 2>/dev/null

    expect "create" ckstore create $STORE --size 256M
    info=$(ckstore info $STORE --json) || fail "info: exit code $?"
    echo "$info" | grep -q '"isPersistentMemory"[[:space:]]*:[[:space:]]*true' \
        || fail "the medium is not recognised as persistent memory:
$info"
    echo "ok: the medium is persistent memory"
    save first /tmp/first
    save second /tmp/second
    is_listed first || fail "first is not listed"
    is_listed second || fail "second is not listed"
    expect "verify" ckstore verify $STORE
    restore second /tmp/second
    restore first /tmp/first
}

# Whether the process is frozen now; no when it has already ended.
freeze() {
    kill -STOP "$1" 2>/dev/null || return 1
    while read -r _ _ state _ <"/proc/$1/stat"; do
        case $state in
            T) return 0 ;;
            Z) return 1 ;;
        esac
        usleep 1000
    done 2>/dev/null
    return 1
}

power_cut() {
    percent=$1
    mkdir $EXPECTED || fail "$EXPECTED cannot be made"
    make_memory $EXPECTED/base
    make_memory $EXPECTED/next
    expect "create" ckstore create $STORE --size 256M
    start=$(centiseconds)
    save base $EXPECTED/base
    duration=$(($(centiseconds) - start))

    # A save that ends before it is frozen counts as acknowledged, and the next one is frozen earlier.
    cp $EXPECTED/base $EXPECTED/acknowledged-base
    for attempt in 1 2 3; do
        name=cut-$attempt
        echo $name >$EXPECTED/cut-name
        sync
        ckstore save $STORE $name --memory ram=$EXPECTED/next >/tmp/save-output 2>&1 &
        saver=$!
        usleep $((duration * percent * 100))
        if freeze $saver; then
            echo "ok: frozen after $percent % of $duration centiseconds"
            echo POWER-CUT-HERE
            sleep 1000
        fi
        wait $saver || fail "save $name: exit code $?
$(cat /tmp/save-output)"
        cp $EXPECTED/next $EXPECTED/acknowledged-$name
        percent=$((percent * 7 / 10))
    done
    fail "no save could be frozen before its end"
}

after_power_cut() {
    name=$(cat $EXPECTED/cut-name) || fail "there was no power cut on this NVDIMM"
    expect "verify" ckstore verify $STORE
    for file in $EXPECTED/acknowledged-*; do
        restore "${file#"$EXPECTED"/acknowledged-}" "$file"
    done
    if is_listed "$name"; then
        restore "$name" $EXPECTED/next
    else
        rm -f /tmp/restored
        ckstore restore $STORE "$name" --region ram=/tmp/restored >/dev/null 2>&1 \
            && fail "$name is restored, though it is not listed"
        echo "ok: $name was not acknowledged, and is not there"
    fi
    save afterwards $EXPECTED/next
    restore afterwards $EXPECTED/next
    expect "verify at the end" ckstore verify $STORE
}

case ${1:-} in
    round-trip) round_trip ;;
    power-cut) power_cut "${2:?PERCENT is missing}" ;;
    after-power-cut) after_power_cut ;;
    *) fail "usage: guest-store-test.sh round-trip | power-cut PERCENT | after-power-cut" ;;
esac
