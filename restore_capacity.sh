#!/usr/bin/env bash
# restore_capacity.sh [TABLE]
#
# Puts the capacity of a DynamoDB table (GameLeaderboard) back to 5 RCU / 5 WCU, in case an
# earlier lab lowered it, and waits until that is in force. Leaves alone a table that has it or is
# on-demand, and global indexes, which it shows. Run it again at will, also after a run cut short.
#
# READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS ask for other values. Credentials, region and
# endpoint are the AWS CLI's (v1 or v2). Permissions: dynamodb:DescribeTable, dynamodb:UpdateTable.
# Exit status: 0 done, 1 AWS said no or could not be reached, 2 wrong usage, 130 interrupted.

set -euo pipefail
readonly LAB="without an account: python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"
readonly POLL_SECONDS=2 MAX_POLLS=150 # a change takes seconds; give up after about five minutes
readonly CAPACITY="to_string(ProvisionedThroughput.ReadCapacityUnits),' RCU / ',\
to_string(ProvisionedThroughput.WriteCapacityUnits),' WCU'"
# One line with tabs: STATE, status, billing mode, the table's capacity, its global indexes' own.
readonly STATE="Table.['STATE',TableStatus,BillingModeSummary.BillingMode||'PROVISIONED',\
join('',[${CAPACITY}]),join(', ',[GlobalSecondaryIndexes][][].join('',[IndexName,' ',${CAPACITY}]))]"

note() { [[ "$1" == "${noted:-}" ]] || echo "$1" >&2; noted="$1"; } # once, not each poll
fail() { printf '%s\n' "error: $1" ${2:+"hint: $2"} >&2; exit "${3:-1}"; }

# Leaves the answer in $reply. Before 1.29 and 2.13 the CLI heeds no variable: it would ask AWS.
ask() { # OPERATION OPTION...
  reply="$(aws dynamodb "$1" --table-name "${table}" --output text --cli-connect-timeout 10 \
    ${endpoint:+--endpoint-url "${endpoint}"} "${@:2}" 2>&1)"
}

# Ends with what $reply says, unless that passes. By its text: v1 exits with 255, v2 with 254.
explain() { # PERMISSION
  reply="$(awk '{ sub("//[^/ ]*@", "//") } /error occurred/ { said = $0; exit }
    NF { said = said space $0; space = " " } END { print said }' <<<"${reply}")" # less a password
  case "${reply}" in
    *"equals the current value"*) ;; # somebody else was faster: the next poll shows it
    *ResourceInUse*) note "${table} is being changed by somebody else: waiting" ;;
    *"locate credentials"*) fail "no AWS credentials found" "run: aws configure, or ${LAB}" ;;
    *"specify a region"*) fail "no AWS region set" "export AWS_DEFAULT_REGION=us-east-1, or ${LAB}" ;;
    *"endpoint URL"*) fail "aws: ${reply}" "check network, region and endpoint" ;;
    *AccessDenied*) fail "access to ${table} denied" "ask for the permission $1" ;;
    *ResourceNotFound*) fail "no table ${table} here" "check name, region, account and endpoint" ;;
    *LimitExceededException*) fail "aws: ${reply}" \
      "wait: a table takes 4 decreases in the first hour, then one an hour, 27 a UTC day" ;;
    *ExpiredToken* | *expired*) fail "the AWS credentials have expired" "log in or renew them" ;;
    *) fail "aws: ${reply}" ;;
  esac
}

main() {
  local table="${1-GameLeaderboard}" endpoint="${AWS_ENDPOINT_URL_DYNAMODB:-${AWS_ENDPOINT_URL:-}}"
  local rcu="${READ_CAPACITY_UNITS:-5}" wcu="${WRITE_CAPACITY_UNITS:-5}"
  local poll status mode capacity indexes
  if [[ "${table}" =~ ^(-h|--help)$ ]]; then sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; return; fi
  [[ $# -lt 2 && "${table}" != -* ]] || fail "not understood: $*" "usage: ${0##*/} [TABLE]" 2
  [[ "${rcu}/${wcu}" =~ ^[1-9][0-9]*/[1-9][0-9]*$ ]] ||
    fail "READ_CAPACITY_UNITS and WRITE_CAPACITY_UNITS are positive whole numbers" "see --help" 2
  command -v aws >/dev/null || fail "no aws on PATH" "install it: pip install awscli; then, ${LAB}"
  trap 'fail interrupted "run it again: it goes on from there" 130' INT
  export AWS_PAGER='' AWS_RETRY_MODE="${AWS_RETRY_MODE:-standard}" # v1's own: half a minute
  [[ -z "${endpoint}" ]] || note "endpoint: ${endpoint##*@} (set by environment variable)"
  for ((poll = 0; poll < MAX_POLLS; poll++)); do
    ((poll == 0)) || sleep "${POLL_SECONDS}"
    ask describe-table --query "${STATE}" || explain dynamodb:DescribeTable
    IFS=$'\t' read -r status mode capacity indexes <<<"${reply##*STATE$'\t'}"
    ((poll > 0)) || echo "before: ${capacity}${indexes:+; indexes stay: ${indexes}}"
    case "${status} ${mode} ${capacity}" in
      UPDATING* | CREATING*) note "${table} is ${status}: waiting" ;;
      "ACTIVE PAY_PER_REQUEST "*) echo "on-demand: nothing to restore"; return ;;
      "ACTIVE PROVISIONED ${rcu} RCU / ${wcu} WCU") ((poll > 0)) || note "nothing to restore"
        echo "after:  ${capacity}"; return ;;
      ACTIVE*) ask update-table --provisioned-throughput \
        "ReadCapacityUnits=${rcu},WriteCapacityUnits=${wcu}" || explain dynamodb:UpdateTable ;;
      *) fail "${table} is ${status}: only an ACTIVE table can be changed" ;;
    esac
  done
  fail "${table} is still ${status} at ${capacity}" "run it again later"
}

main "$@"
