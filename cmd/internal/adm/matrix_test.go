package adm

// situation is one column of the refusal matrix: a node in a state.
type situation struct {
	name, node string
	use        string // of testdata/base
	put        string
	daemon     string // rules; "-" for no daemon
	units      bool   // systemd runs here
}

// obedient are the rules of a marsd on both hosts that does what it is told.
const obedient = `resource-r0/primary=(none) => resource-r0/actual-hosta/is-primary=0
resource-r0/primary=(none) => resource-r0/actual-hosta/if-on=0
resource-r0/primary=hostb => resource-r0/actual-hostb/is-primary=1
resource-r0/primary=hostb => resource-r0/actual-hostb/if-on=1
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/is-attached=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/if-on=0
resource-r0/todo-hosta/attach=0 => resource-r0/actual-hosta/is-replaying=0
resource-r0/todo-hosta/sync=0 => resource-r0/actual-hosta/is-syncing=0
resource-r0/todo-hostb/attach=1 => resource-r0/actual-hostb/is-attached=1
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-attached=0
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-replaying=0
resource-r0/todo-hostb/attach=0 => resource-r0/actual-hostb/is-syncing=0
resource-r0/todo-hostb/allow-replay=0 => resource-r0/actual-hostb/is-replaying=0
resource-r0/todo-hostb/sync=0 => resource-r0/actual-hostb/is-syncing=0
resource-r0/todo-hostb/connect=0 => resource-r0/actual-hostb/is-copying=0
`

const switchedOff = `resource-r0/todo-hostb/attach -> 0
resource-r0/todo-hostb/connect -> 0
resource-r0/todo-hostb/sync -> 0
resource-r0/todo-hostb/allow-replay -> 0
resource-r0/actual-hostb/is-attached -> 0
resource-r0/actual-hostb/is-replaying -> 0
`

// situations are the columns, from left to right.
var situations = []situation{
	{name: "no cluster", node: "hosta", daemon: "-"},
	{name: "not joined", node: "hostc", use: "pair", put: "ips/ip-hostc -> 10.9.0.3", daemon: obedient},
	{name: "secondary", node: "hostb", use: "pair", daemon: obedient},
	{name: "syncing", node: "hostb", use: "pair", put: "resource-r0/syncstatus-hostb -> 4096\nresource-r0/actual-hostb/is-syncing -> 1", daemon: obedient},
	{name: "primary idle", node: "hosta", use: "pair", daemon: obedient},
	{name: "primary open", node: "hosta", use: "pair", put: "resource-r0/actual-hosta/open-count -> 1", daemon: obedient},
	{name: "detached", node: "hostb", use: "pair", put: switchedOff, daemon: obedient},
	{name: "split brain", node: "hostb", use: "pair", daemon: obedient, put: `resource-r0/log-000000002-hostb = 4096
resource-r0/replay-hosta -> log-000000002-hosta,4096,0
resource-r0/version-000000002-hosta -> 22222222222222222222222222222222,log-000000002-hosta,4096:11111111111111111111111111111111,log-000000001-hosta,8388608
resource-r0/replay-hostb -> log-000000002-hostb,4096,0
resource-r0/version-000000002-hostb -> 33333333333333333333333333333333,log-000000002-hostb,4096:11111111111111111111111111111111,log-000000001-hosta,8388608`},
	{name: "emergency", node: "hostb", use: "pair", put: "resource-r0/actual-hosta/has-emergency -> 1", daemon: obedient},
	{name: "cut", node: "hostb", use: "pair", put: "actual-hosta/time -> $NOW-300", daemon: "dead hosta\n" + obedient},
	{name: "daemon down", node: "hostb", use: "pair", put: "actual-hostb/time -> $NOW-300", daemon: "-"},
	{name: "damaged log", node: "hosta", use: "pair", daemon: obedient + givenUp, put: `resource-r0/actual-hosta/log-damage -> log-000000001-hosta,4096,8384512
resource-r0/actual-hosta/is-primary -> 0
resource-r0/actual-hosta/if-on -> 0
resource-r0/actual-hosta/replay-code -> -10101`},
	{name: "units here", node: "hosta", use: "pair", put: runningApp, units: true, daemon: obedient + obedientUnits},
	{name: "units there", node: "hostb", use: "pair", put: runningApp, units: true, daemon: obedient + obedientUnits},
}

// runningApp is a service on the primary, and obedientUnits marsd on all hosts telling
// systemd about it.
const runningApp = `resource-r0/systemd-start-unit -> app.service
resource-r0/systemd-want -> hosta
resource-r0/actual-hosta/open-count -> 1
resource-r0/actual-hostb/open-count -> 0`

const obedientUnits = `resource-r0/systemd-want=(none) => resource-r0/actual-hosta/open-count=0
resource-r0/systemd-want=(none) => resource-r0/actual-hostb/open-count=0
resource-r0/systemd-want=hosta => resource-r0/actual-hosta/open-count=1
resource-r0/systemd-want=hosta => resource-r0/actual-hostb/open-count=0
resource-r0/systemd-want=hostb => resource-r0/actual-hosta/open-count=0
resource-r0/systemd-want=hostb => resource-r0/actual-hostb/open-count=1
`

// givenUp: marsd ends the own log in front of the damage when it is told to.
const givenUp = `resource-r0/todo-hosta/give-up=log-000000001-hosta,4096 => resource-r0/actual-hosta/if-on=1
resource-r0/todo-hosta/give-up=log-000000001-hosta,4096 => resource-r0/actual-hosta/is-primary=1
`

// matrix says what becomes of every command in every situation: D done (what changes
// is in testdata/matrix.txt), n done without changing anything, R refused without
// having changed anything, T timed out, likewise; check says 0 to 3. Columns are the
// situations; what the original demands is in reference marsadm.md 6 and
// symlink-tree.md 7. Names that mean the same share a row.
const matrix = `
create-cluster                                                     | D R R R R R R R R R R R R R
join-cluster hosta 10.9.0.1                                        | R R R R R R R R R R R R R R
leave-cluster                                                      | R D R R R R R R R R R R R R
leave-cluster --force                                              | R D D D D D D D D D D D D D
merge-cluster,merge-cluster-check hostz 10.9.0.9                   | R R R R R R R R R R R R R R
merge-cluster-list                                                 | n n n n n n n n n n n n n n
create-uuid                                                        | D R R R R R R R R R R R R R
lowlevel-ls-host-ips                                               | n n n n n n n n n n n n n n
lowlevel-set-host-ip hostz 10.9.0.9                                | R D D D D D D D D D D D D D
lowlevel-delete-host hosta                                         | R R R R R R R R R R R R R R
lowlevel-delete-host hosta --force                                 | R D D D D D D D D D D D D D
create-resource r1 $DIR/new                                        | R D D D D D D D D D D D D D
create-resource r0 $DIR/new                                        | R R R R R R R R R R R R R R
join-resource r0 $DIR/new                                          | R D R R R R R R R R R R R R
join-resource r0 $DIR/new --force                                  | R D D D R R D D R D R R R D
leave-resource r0                                                  | R R R R R R D R R R R R R R
leave-resource r0 --force                                          | R n D D D D D D D D D D D D
delete-resource r0                                                 | R R R R R R R R R R R R R R
delete-resource r0 --force                                         | R D D D D D D D D D D D D D
activate-guest r0                                                  | R D R R R R R R R R R R R R
deactivate-guest r0                                                | R R R R R R R R R R R R R R
up r0                                                              | R R n n n n D n n n R n n n
down r0                                                            | R R D D D R D D D D D D D D
attach r0                                                          | R R n n n n D n n n R n n n
detach r0                                                          | R R D D D R D D D D D D D D
detach r0 --force                                                  | R R D D D D D D D D D D D D
pause-fetch,pause-fetch-local,disconnect,disconnect-local r0       | R R D D D D D D D D D D D D
pause-fetch-global,disconnect-global r0                            | R R D D D D D D D D D D D D
resume-fetch,resume-fetch-local,connect,connect-local r0           | R R n n n n D n n n n n n n
resume-fetch-global,connect-global r0                              | R R n n n n D n n n n n n n
pause-replay,pause-replay-local r0                                 | R R D D D D D D D D D D D D
pause-replay-global r0                                             | R R D D D D D D D D D D D D
resume-replay,resume-replay-local r0                               | R R n n n n D n n n n n n n
resume-replay-global r0                                            | R R n n n n D n n n n n n n
pause-sync,pause-sync-local r0                                     | R R D D D D D D D D D D D D
pause-sync-global r0                                               | R R D D D D D D D D D D D D
resume-sync,resume-sync-local r0                                   | R R n n n n D n R n n n n n
resume-sync-global r0                                              | R R n n n n D n R n n n n n
primary r0                                                         | R R D R D D R R D R R R D D
primary r0 --ignore-sync                                           | R R D R D D R R D R R R D D
primary r0 --force                                                 | R R R R R R R R R R R D R R
secondary r0                                                       | R R D D D R D D D D D D D D
secondary r0 --force                                               | R R D D D D D D D D D D D D
invalidate r0                                                      | R R D D R R D D R R R R R D
invalidate r0 --force                                              | R R D D R R D D R D R R R D
fake-sync r0                                                       | R R D D D D D D D D D D D D
set-replay r0 1                                                    | R R R R R R D R R R R R R R
set-replay r0 9 --force                                            | R R R R R R R R R R R R R R
resize r0                                                          | R R R R R R R R R R R R R R
wait-cluster,wait-connect,update-cluster                           | R n n n n n n n n n R n n n
wait-resource r0 is-attach                                         | R R n n n n T n n n n n n n
wait-resource r0 primary-off                                       | R R n n T T n n n n n T T n
wait-umount r0                                                     | R n n n n T n n n n n n T n
cron                                                               | R D D D D D D D D D D D D D
log-rotate r0                                                      | R R R R D D R R R R R n D R
log-delete-all,log-delete,log-delete-all-replayed,log-delete-one r0 | R R n n n n n D n n n n n n
log-purge-all r0                                                   | R n n n n n n n n n n n n n
err-purge-all r0                                                   | R n D D D D D D D D D D D D
link-purge-all r0                                                  | R n n n n n n n n n n n n n
set-emergency-limit,emergency-limit r0 80                          | R R D D D D D D D D D D D D
set-sync-mode r0 near 1 50                                         | R R D D D D D D D D D D D D
set-traffic-limit log 1000                                         | R D D D D D D D D D D D D D
set-resource-traffic-limit r0 sync 1000                            | R R D D D D D D D D D D D D
get-traffic-limit                                                  | n n n n n n n n n n n n n n
set-replay-delay r0 60                                             | R R D D D D D D D D D D D D
get-sync-mode,get-replay-delay r0                                  | R R n n n n n n n n n n n n
get-emergency-limit,get-connect-pref-list,get-disabled-digests r0  | R R n n n n n n n n n n n n
set-global-sync-limit-value,set-sync-limit-value 2                 | R D D D D D D D D D D D D D
get-global-sync-limit-value,get-sync-limit-value                   | R R n n n n n n n n n n n n
set-global-enabled-log-compressions COMPRESS_LZ4                   | R D D D D D D D D D D D D D
set-global-enabled-net-compressions COMPRESS_LZ4                   | R D D D D D D D D D D D D D
set-global-disabled-log-digests CHKSUM_MD5                         | R D D D D D D D D D D D D D
set-global-disabled-net-digests CHKSUM_MD5                         | R D D D D D D D D D D D D D
get-global-enabled-log-compressions,get-global-enabled-net-compressions | n n n n n n n n n n n n n n
get-global-disabled-log-digests,get-global-disabled-net-digests    | n n n n n n n n n n n n n n
set-disabled-digests r0 CHKSUM_MD5                                 | R R D D D D D D D D D D D D
set-connect-pref-list r0 hosta                                     | R R D D D D D D D D D D D D
set-systemd-unit r0 x.service                                      | R R D D D D D D D D D D D D
set-systemd-unit r0 ""                                             | R R n n n n n n n n n n D D
set-systemd-want r0 hosta                                          | R R R R R R R R R R R R D D
set-systemd-want r0 (none)                                         | R R R R R R R R R R R R D D
get-systemd-unit,get-systemd-want r0                               | R n n n n n n n n n n n n n
systemd-trigger r0                                                 | R n n n n n n n n n n n D D
systemd-trigger-extern r0                                          | R n n n n n n n n n n n D D
set-link x userspace/a                                             | R D D D D D D D D D D D D D
get-link uuid                                                      | R n n n n n n n n n n n n n
delete-file userspace/none                                         | R R R R R R R R R R R R R R
cat uuid                                                           | R n n n n n n n n n n n n n
view,view-role,prettyprint-role,show-info,mars-info r0             | R n n n n n n n n n n n n n
show,show-state,mars-state,role,state r0                           | R n n n n n n n n n n n n n
show-errors r0                                                     | R n n n n n n n n n n n n n
why r0                                                             | R n n n n n n n n n n n n n
tree r0                                                            | R n n n n n n n n n n n n n
tree                                                               | n n n n n n n n n n n n n n
check                                                              | 3 0 0 1 0 0 1 2 2 2 2 2 0 0
syncer,check-resize,get-gi,show-gi,outdate,adjust,hidden-commands r0 | n n n n n n n n n n n n n n
create-md,dump-md,dump,new-current-uuid r0                         | n n n n n n n n n n n n n n
verify,invalidate-remote,cstate,dstate,status,split-cluster r0     | R R R R R R R R R R R R R R
log-dump,log-verify $DIR/log-000000001-hosta                       | n n n n n n n n n n n n n n
version,help,dump-macros,dump-all-macros                           | n n n n n n n n n n n n n n
completion bash                                                    | n n n n n n n n n n n n n n
`
