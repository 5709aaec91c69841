# Runs one server in the new directory $1, by the command line that follows, and obeys the words that arrive on stdin, one
# per line, each answered by one line; what follows `start` is more arguments for this time, without blanks in them. When stdin ends,
# however its writer ended, so do the server and the directory.
dir=$1
shift
trap '' HUP INT TERM PIPE
PATH=$PATH:/usr/bin:/bin
mkdir -m 700 -- "$dir" || exit 1
pid=

# The kernel kills the server if somebody kills this shell.
leash=
if setpriv --pdeathsig KILL true 2>/dev/null; then leash='setpriv --pdeathsig KILL'; fi

start() {
    # shellcheck disable=SC2086 # the leash is several words or none
    (trap - HUP INT TERM PIPE && cd "$dir" && exec $leash "$@") </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}

# Not reaped before this `wait`, so the number cannot have passed to another process. SIGKILL also ends a stopped one.
finish() {
    [ -n "$pid" ] || return 0
    kill -KILL "$pid"
    wait "$pid"
    pid=
} 2>/dev/null

echo ready
while read -r word more; do
    # shellcheck disable=SC2086 # the arguments are several words or none
    case $word in
    start) finish && start "$@" $more && echo "$pid" ;;
    kill) finish && echo killed ;;
    *) if kill -"$word" "$pid" 2>/dev/null; then echo sent; else echo failed; fi ;;
    esac
done

finish
for _ in 1 2 3; do rm -rf -- "$dir" && break; done
