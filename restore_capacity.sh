#!/usr/bin/env bash
# restore_capacity.sh [TABLE]
#
# Puts the capacity of a DynamoDB table (GameLeaderboard) back to 5 RCU / 5 WCU, in case an
# earlier lab lowered it, and waits until that is in force. A table that has it, or is on demand,
# stays as it is; so do global indexes, which are shown. Run it again at will, or if it was cut short.
#
# READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS ask for other values. Credentials, region and
# endpoint are the AWS CLI's (v1 or v2). Permissions: dynamodb:DescribeTable, dynamodb:UpdateTable.
# Exit status: 0 done, 1 AWS said no or could not be reached, 2 wrong usage, 130 interrupted.

set -euo pipefail

readonly TABLE="${1-GameLeaderboard}"
readonly RCU="${READ_CAPACITY_UNITS:-5}"
readonly WCU="${WRITE_CAPACITY_UNITS:-5}"
readonly ENDPOINT="${AWS_ENDPOINT_URL_DYNAMODB:-${AWS_ENDPOINT_URL:-}}"
readonly POLL_SECONDS=2
readonly MAX_POLLS=150 # a change takes seconds: give up after about five minutes

# What a table's description is boiled down to: one line with tabs, of the word STATE (warnings may
# be around it), status, billing mode, capacity, and the global indexes with theirs; [][] makes no
# index, which is null, an empty list.
readonly CAPACITY="to_string(ProvisionedThroughput.ReadCapacityUnits), ' RCU / ', \
to_string(ProvisionedThroughput.WriteCapacityUnits), ' WCU'"
readonly QUERY="Table.['STATE', TableStatus, BillingModeSummary.BillingMode || 'PROVISIONED', \
join('', [${CAPACITY}]), \
join(', ', [GlobalSecondaryIndexes][][].join('', [IndexName, ' ', ${CAPACITY}]))]"

# Hints that several errors give.
readonly LAB="without an account: python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"
readonly BY_HAND="to see more, run: aws dynamodb describe-table --table-name ${TABLE} --debug"

answer_file='' # where aws writes to
last_note=''

# Says something, but not what it said last, at every poll.
note() { # MESSAGE
  [[ "$1" == "${last_note}" ]] || echo "$1" >&2
  last_note="$1"
}

# Ends the script with what is wrong and what to do about it.
fail() { # MESSAGE [HINT [STATUS]]
  echo "error: $1" >&2
  if [[ -n "${2:-}" ]]; then
    echo "hint: $2" >&2
  fi
  exit "${3:-1}"
}

# Ends the script at a signal, and first its child: Ctrl-C does not end what runs in the background.
interrupted() {
  local child
  trap '' INT TERM HUP # once is enough
  for child in $(jobs -p); do
    kill "${child}" 2>/dev/null || true # it may just have ended
  done
  fail "interrupted" "run it again: it goes on from there" 130
}

# Asks AWS; sets reply (all that it said) and exit_status. aws runs in the background, as the sleep
# below does: a trap has to wait for a command in the foreground, but not for wait.
ask() { # OPERATION OPTION...
  exit_status=0
  # The endpoint as an option: before 1.29 and 2.13 the CLI heeds no variable, and would ask AWS.
  aws dynamodb "$@" --table-name "${TABLE}" --output text --cli-connect-timeout 10 \
    ${ENDPOINT:+--endpoint-url "${ENDPOINT}"} >"${answer_file}" 2>&1 &
  wait "$!" 2>/dev/null || exit_status="$?" # not bash's own line, should aws be killed
  reply="$(<"${answer_file}")"
  return "${exit_status}"
}

# Prints the reply on one line: the error that AWS names, or else all of it; no endpoint's password.
summary() {
  awk '
    { sub("//[^/ ]*@", "//") }
    /error occurred/ { line = $0; exit }
    NF { line = line space $0; space = " " }
    END { print line }
  ' <<<"${reply}"
}

# Ends the script with what the reply means. It goes by the text: v1 exits with 255, v2 with 254.
explain() { # OPERATION PERMISSION
  local said
  said="$(summary)"
  case "${said}" in
    '') fail "aws dynamodb $1 failed without a word (exit status ${exit_status})" "${BY_HAND}" ;;
    *"locate credentials"*) fail "no AWS credentials found" "run: aws configure, or ${LAB}" ;;
    *"specify a region"*)
      fail "no AWS region set" "export AWS_DEFAULT_REGION=us-east-1, or ${LAB}"
      ;;
    *"endpoint URL"*) fail "aws: ${said}" "check network, region and endpoint" ;;
    *AccessDenied*) fail "access to ${TABLE} denied" "ask for the permission $2" ;;
    *ResourceNotFound*) fail "no table ${TABLE} here" "check name, region, account and endpoint" ;;
    *LimitExceededException*)
      fail "aws: ${said}" \
        "wait: a table takes 4 decreases in the first hour, then one an hour, 27 a UTC day"
      ;;
    *ExpiredToken* | *expired*) fail "the AWS credentials have expired" "log in or renew them" ;;
    *) fail "aws: ${said}" ;;
  esac
}

# Looks at the table; sets status, mode, capacity and indexes.
describe_table() {
  ask describe-table --query "${QUERY}" || explain describe-table dynamodb:DescribeTable
  IFS=$'\t' read -r status mode capacity indexes <<<"${reply##*STATE$'\t'}"
  if [[ "${capacity}" != *" RCU / "*" WCU" ]]; then
    reply="$(summary)"
    fail "aws dynamodb describe-table did not tell the state, but: ${reply:-nothing}" "${BY_HAND}"
  fi
}

# Asks for the capacity wanted; what comes of it, the next poll shows.
update_table() {
  local wanted="ReadCapacityUnits=${RCU},WriteCapacityUnits=${WCU}"
  if ask update-table --provisioned-throughput "${wanted}"; then
    return
  fi
  case "${reply}" in
    *"equals the current value"*) ;; # somebody else was faster
    *ResourceInUse*) note "${TABLE} is being changed by somebody else: waiting" ;;
    *) explain update-table dynamodb:UpdateTable ;;
  esac
}

# Does what the table's state calls for, until it has the capacity wanted.
restore() {
  local poll
  for ((poll = 0; poll < MAX_POLLS; poll++)); do
    describe_table
    ((poll > 0)) || echo "before: ${capacity}${indexes:+; indexes stay: ${indexes}}"
    case "${status} ${mode} ${capacity}" in
      UPDATING* | CREATING*) note "${TABLE} is ${status}: waiting" ;;
      "ACTIVE PAY_PER_REQUEST "*)
        echo "on-demand: nothing to restore"
        return
        ;;
      "ACTIVE PROVISIONED ${RCU} RCU / ${WCU} WCU")
        ((poll > 0)) || note "nothing to restore"
        echo "after:  ${capacity}"
        return
        ;;
      ACTIVE*) update_table ;;
      *) fail "${TABLE} is ${status}: only an ACTIVE table can be changed" ;;
    esac
    sleep "${POLL_SECONDS}" &
    wait "$!" || true # woken early, it looks early
  done
  fail "${TABLE} is still ${status} at ${capacity}" "run it again later"
}

# Refuses what it cannot do, sets up what aws needs, and goes to work.
main() { # ARGUMENT...
  if [[ "${TABLE}" == "-h" || "${TABLE}" == "--help" ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" # the comment at the top
    return
  fi
  [[ $# -lt 2 && "${TABLE}" != -* ]] || fail "not understood: $*" "usage: ${0##*/} [TABLE]" 2
  [[ "${RCU}/${WCU}" =~ ^[1-9][0-9]*/[1-9][0-9]*$ ]] ||
    fail "READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS are positive whole numbers" "see --help" 2
  command -v aws >/dev/null || fail "no aws on PATH" "install it: pip install awscli; then, ${LAB}"

  trap 'rm -f "${answer_file}"' EXIT
  trap interrupted INT TERM HUP
  answer_file="$(mktemp "${TMPDIR:-/tmp}/restore_capacity.XXXXXX")" ||
    fail "no temporary file could be made" "set TMPDIR to a folder to write in"
  export AWS_PAGER=''                                 # v2 would open less
  export AWS_RETRY_MODE="${AWS_RETRY_MODE:-standard}" # v1's own takes half a minute
  if [[ -n "${ENDPOINT}" ]]; then
    note "endpoint: ${ENDPOINT##*@} (set by environment variable)"
  fi
  restore
}

main "$@"
