#!/usr/bin/env bash
# restore_capacity.sh [TABLE]
#
# Set the capacity of a DynamoDB table (default: GameLeaderboard) back to 5 RCU and
# 5 WCU. An earlier lab may have lowered it. The script waits until the change is
# complete. It does not change a table that has this capacity already, a table that
# is on demand, or a global index. You can run it as often as you like.
#
# READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS set other values. The AWS CLI (v1 or
# v2) finds the credentials, the region and the endpoint.
# Permissions: dynamodb:DescribeTable and dynamodb:UpdateTable.
# Exit status: 0 done, 1 AWS refused or did not answer, 2 wrong usage, 130 interrupted.

set -euo pipefail

readonly TABLE="${1-GameLeaderboard}"
readonly RCU="${READ_CAPACITY_UNITS:-5}"
readonly WCU="${WRITE_CAPACITY_UNITS:-5}"
readonly ENDPOINT="${AWS_ENDPOINT_URL_DYNAMODB:-${AWS_ENDPOINT_URL:-}}"
readonly POLL_SECONDS=2
readonly MAX_POLLS=150 # about five minutes; a change usually takes seconds

# The query (JMESPath) turns a table's description into one line. Tabs separate the
# word STATE, the status, the billing mode, the capacity, and the global indexes. We
# look for the word STATE because the CLI may print warnings around the line. If the
# table has no index, [][] turns null into an empty list.
readonly CAPACITY="to_string(ProvisionedThroughput.ReadCapacityUnits), ' RCU / ', \
to_string(ProvisionedThroughput.WriteCapacityUnits), ' WCU'"
readonly QUERY="Table.['STATE', TableStatus, BillingModeSummary.BillingMode || 'PROVISIONED', \
join('', [${CAPACITY}]), \
join(', ', [GlobalSecondaryIndexes][][].join('', [IndexName, ' ', ${CAPACITY}]))]"

# Several errors give these hints.
readonly LAB="without an account: python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"
readonly BY_HAND="to see more, run: aws dynamodb describe-table --table-name ${TABLE} --debug"

answer_file='' # aws writes its answer to this file
last_note=''

# Print a message on standard error, unless it was also the last one.
note() { # MESSAGE
  [[ "$1" == "${last_note}" ]] || echo "$1" >&2
  last_note="$1"
}

# End the script: say what is wrong, and what to do about it.
fail() { # MESSAGE [HINT [STATUS]]
  echo "error: $1" >&2
  if [[ -n "${2:-}" ]]; then
    echo "hint: $2" >&2
  fi
  exit "${3:-1}"
}

# End the script after a signal. Ctrl-C does not reach a background process, so end
# aws or sleep here.
interrupted() {
  local child
  trap '' INT TERM HUP # ignore further signals
  for child in $(jobs -p); do
    kill "${child}" 2>/dev/null || true # it may have ended by itself
  done
  fail "interrupted" "run it again to go on" 130
}

# Run aws dynamodb. Put its output into reply, and its exit status into exit_status.
# aws runs in the background, because bash handles a signal during `wait` at once. It
# would handle it only after the end of a command in the foreground.
ask() { # OPERATION OPTION...
  exit_status=0
  # The CLI reads the endpoint variables only since 1.29 and 2.13. So pass an option.
  aws dynamodb "$@" --table-name "${TABLE}" --output text --cli-connect-timeout 10 \
    ${ENDPOINT:+--endpoint-url "${ENDPOINT}"} >"${answer_file}" 2>&1 &
  # If aws is killed, bash prints a line of its own. We do not need it.
  wait "$!" 2>/dev/null || exit_status="$?"
  reply="$(<"${answer_file}")"
  return "${exit_status}"
}

# Print the reply on one line, without the password of an endpoint: the line with
# AWS's error, or everything if there is no such line.
summary() {
  awk '
    { sub("//[^/ ]*@", "//") }
    /error occurred/ { line = $0; exit }
    NF { line = line space $0; space = " " }
    END { print line }
  ' <<<"${reply}"
}

# End the script: say what the reply means. The exit status does not tell: it is 255
# in v1 of the CLI and 254 in v2, whatever the error is.
explain() { # OPERATION PERMISSION
  local said
  said="$(summary)"
  case "${said}" in
    '') fail "aws dynamodb $1 failed without a message (exit status ${exit_status})" "${BY_HAND}" ;;
    *"locate credentials"*) fail "no AWS credentials found" "run: aws configure, or ${LAB}" ;;
    *"specify a region"*)
      fail "no AWS region set" "export AWS_DEFAULT_REGION=us-east-1, or ${LAB}"
      ;;
    *"endpoint URL"*) fail "aws: ${said}" "check the network, the region and the endpoint" ;;
    *"(AccessDeniedException)"*) fail "access to ${TABLE} denied" "ask for the permission $2" ;;
    *"(ResourceNotFoundException)"*)
      fail "there is no table ${TABLE} here" "check the name, region, account and endpoint"
      ;;
    *"(LimitExceededException)"*simultaneously*)
      fail "aws: ${said}" "wait until the other changes are complete, then run it again"
      ;;
    *"(LimitExceededException)"*[Dd]ecrease*)
      fail "aws: ${said}" \
        "wait: a table allows 4 decreases in the first hour, then one an hour, 27 a UTC day"
      ;;
    *"Signature expired"* | *"Signature not yet current"*)
      fail "the clock of this machine is wrong, so AWS refuses the request" \
        "set the clock. It shows $(date -u '+%Y-%m-%d %H:%M') UTC"
      ;;
    *"(ExpiredToken"* | *"oken has expired"* | *"ession has expired"* | *"profile has expired"*)
      fail "the AWS credentials have expired" "log in again, or renew them"
      ;;
    *) fail "aws: ${said}" ;;
  esac
}

# Look at the table. Set status, mode, capacity and indexes.
describe_table() {
  ask describe-table --query "${QUERY}" || explain describe-table dynamodb:DescribeTable
  IFS=$'\t' read -r status mode capacity indexes <<<"${reply##*STATE$'\t'}"
  if [[ "${capacity}" != *" RCU / "*" WCU" ]]; then
    reply="$(summary)"
    fail "aws dynamodb describe-table did not describe the table, but said: ${reply:-nothing}" \
      "${BY_HAND}"
  fi
}

# Request the capacity that is wanted. The next look at the table shows the result.
update_table() {
  local wanted="ReadCapacityUnits=${RCU},WriteCapacityUnits=${WCU}"
  if ask update-table --provisioned-throughput "${wanted}"; then
    return
  fi
  case "${reply}" in
    *"equals the current value"*) ;; # somebody else has just set it
    *"(ResourceInUseException)"*) note "somebody else is changing ${TABLE}: waiting" ;;
    *) explain update-table dynamodb:UpdateTable ;;
  esac
}

# Look at the table and do what its state needs, until it has the capacity wanted.
restore() {
  local poll
  for ((poll = 0; poll < MAX_POLLS; poll++)); do
    describe_table
    if ((poll == 0)); then
      echo "before: ${capacity}${indexes:+; indexes stay: ${indexes}}"
    fi
    case "${status} ${mode} ${capacity}" in
      UPDATING* | CREATING*) note "${TABLE} is ${status}: waiting" ;;
      "ACTIVE PAY_PER_REQUEST "*)
        echo "on-demand: nothing to restore"
        return
        ;;
      "ACTIVE PROVISIONED ${RCU} RCU / ${WCU} WCU")
        if ((poll == 0)); then
          note "nothing to restore"
        fi
        echo "after:  ${capacity}"
        return
        ;;
      ACTIVE*) update_table ;;
      *) fail "${TABLE} is ${status}: only an ACTIVE table can be changed" ;;
    esac
    sleep "${POLL_SECONDS}" &
    wait "$!" || true
  done
  fail "${TABLE} is still ${status} at ${capacity}" "run it again later"
}

main() { # ARGUMENT...
  if [[ "${TABLE}" == "-h" || "${TABLE}" == "--help" ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" # print the comment at the top of this file
    return
  fi
  [[ $# -lt 2 && "${TABLE}" != -* ]] || fail "not understood: $*" "usage: ${0##*/} [TABLE]" 2
  [[ "${RCU}/${WCU}" =~ ^[1-9][0-9]*/[1-9][0-9]*$ ]] ||
    fail "READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS are positive whole numbers" "see --help" 2
  command -v aws >/dev/null ||
    fail "the AWS CLI (aws) is not on PATH" "install it: pip install awscli; then, ${LAB}"

  trap 'rm -f "${answer_file}"' EXIT
  trap interrupted INT TERM HUP
  answer_file="$(mktemp "${TMPDIR:-/tmp}/restore_capacity.XXXXXX")" ||
    fail "cannot make a temporary file" "set TMPDIR to a folder that you can write to"
  export AWS_PAGER=''                                 # otherwise v2 opens less
  export AWS_RETRY_MODE="${AWS_RETRY_MODE:-standard}" # v1's default retries for half a minute
  if [[ -n "${ENDPOINT}" ]]; then
    note "endpoint: ${ENDPOINT##*@} (set by environment variable)"
  fi
  restore
}

main "$@"
