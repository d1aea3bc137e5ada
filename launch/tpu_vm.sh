#!/usr/bin/env bash
# One run on a Cloud TPU slice, from creating it to deleting it:
#
#   export TPU_NAME=faces TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-64
#   bash launch/tpu_vm.sh create            # spot; TPU_SPOT= for on demand
#   bash launch/tpu_vm.sh setup             # copies what is committed, installs it
#   bash launch/tpu_vm.sh run --config=configs/quickstart.py --workdir=/mnt/faces/run
#   bash launch/tpu_vm.sh tail /mnt/faces/run
#   bash launch/tpu_vm.sh resume --config=... --workdir=...   # until it ends well
#   bash launch/tpu_vm.sh delete
#
# --dry-run, wherever it stands, prints the commands instead of running them.
# WORKDIR is a folder that all workers see, such as a mounted bucket or Filestore.
# Needs gcloud; TPU_PROJECT names another project than its own, TPU_VERSION another image.
set -euo pipefail
cd "$(dirname "$0")/.."

TPU_SPOT=${TPU_SPOT---spot}
TPU_TRIES=${TPU_TRIES:-20} # how often resume starts it
HOME_THERE=jaxface         # a folder in the home of every worker
packed=${TMPDIR:-/tmp}/jaxface.tar.gz

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 1
}

dry=
words=()
for word in "$@"; do
  [ "$word" = --dry-run ] && dry=1 || words+=("$word")
done
set -- ${words[@]+"${words[@]}"}
[ $# -gt 0 ] || fail "wanted create, setup, run, tail, resume or delete"
for name in TPU_NAME TPU_ZONE TPU_TYPE; do
  [ -n "${!name:-}" ] || fail "$name is not set; see the head of this file"
done
case "${TPU_VERSION:+set}-$TPU_TYPE" in
  set-*) ;;
  -v4-*) TPU_VERSION=tpu-ubuntu2204-base ;;
  -v5litepod-*) TPU_VERSION=v2-alpha-tpuv5-lite ;;
  -v5p-*) TPU_VERSION=v2-alpha-tpuv5 ;;
  -v6e-*) TPU_VERSION=v2-alpha-tpuv6e ;;
  *) fail "TPU_VERSION is not set, and of TPU_TYPE=$TPU_TYPE it is not known" ;;
esac
where=(--zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"})

# Runs a command, or prints it so that a shell would read the same words again.
do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

gcloud_tpu() {
  do_it gcloud compute tpus tpu-vm "$@" "${where[@]}"
}

# Runs one line of shell on all workers, or on those that the first word names.
there() {
  gcloud_tpu ssh "$TPU_NAME" --worker="$1" --command="$2"
}

create() {
  gcloud_tpu create "$TPU_NAME" --accelerator-type="$TPU_TYPE" \
    --version="$TPU_VERSION" ${TPU_SPOT:+"$TPU_SPOT"}
}

setup() { # chained: where `resume` asks how it went, bash ends at no error within
  do_it git archive --format=tar.gz --output="$packed" HEAD &&
    gcloud_tpu scp "$packed" "$TPU_NAME:jaxface.tar.gz" --worker=all &&
    there all "command -v python3.11 || (sudo apt-get -q update && sudo apt-get -qy install python3.11-venv)" && # Ubuntu 22.04 has 3.10
    there all "mkdir -p $HOME_THERE && tar xzf jaxface.tar.gz -C $HOME_THERE && cd $HOME_THERE && PYTHON=python3.11 JAXFACE_EXTRAS=tpu bash -euc 'source launch/env.sh'"
}

run() {
  there all "cd $HOME_THERE && .venv/bin/python launch/train.py --coordinator=auto$(printf ' %q' "$@")"
}

tail() { # a bucket's logs lie on the workers
  there 0 "tail -n 50 -F$(printf ' %q' "${1/#gs:\/\///tmp/jaxface/gs/}")/logs/process-0.log"
}

delete() {
  gcloud_tpu delete "$TPU_NAME" --quiet
}

# Ends when the run has ended well; makes a new slice when the old one was taken away.
resume() {
  local state try installed=1
  for ((try = 1; try <= TPU_TRIES; try++)); do
    [ -n "$installed" ] && run "$@" && [ -z "$dry" ] && return
    [ -n "$dry" ] || echo "tpu_vm.sh: start $try of $TPU_TRIES did not end well" >&2
    state=$(gcloud_tpu describe "$TPU_NAME" --format='value(state)' || echo gone)
    if [ "$state" != READY ]; then
      [ -z "$dry" ] || echo "$state"
      delete || true
      installed='' && create || true # there may be none now; the next round asks again
    fi
    [ -n "$installed" ] || { setup && installed=1; } || echo "tpu_vm.sh: no new slice yet" >&2
    [ -z "$dry" ] || return 0 # what one round does
    sleep "${TPU_WAIT:-10}"
  done
  fail "the run failed $TPU_TRIES times; see WORKDIR/logs"
}

verb=$1 && shift
case "$verb" in
  create | setup | delete) [ $# -eq 0 ] || fail "$verb takes no more words; got: $*" ;;
  run | resume)
    [[ "$*" = *--config=* && "$*" = *--workdir=* ]] ||
      fail "$verb wants flags of launch/train.py: --config=... --workdir=..."
    ;;
  tail) [ $# -eq 1 ] || fail "tail wants the workdir" ;;
  *) fail "'$verb' is unknown; wanted create, setup, run, tail, resume or delete" ;;
esac
[ -n "$dry" ] || command -v gcloud >/dev/null || fail "gcloud is not installed"
"$verb" "$@"
