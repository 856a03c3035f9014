package adm

// detail is what help and the manual say about a command beyond its one line.
type detail struct{ about, example string }

// details has an entry for every command that does something, under its name or, for
// families, under the name that they share.
var details = map[string]detail{
	"create-cluster": {"Needs an empty, mounted root. Makes the cluster secret if there is none; copy that to every node that shall join. marsd is started afterwards.",
		"marsadm create-cluster --ip=10.0.0.1"},
	"join-cluster": {"Needs the secret of PEER's cluster, an empty root and a running marsd, which fetches the tree of PEER. With --no-wait the request is only written, and carried out when marsd starts. One that has not come about (wrong address, wrong peer) can be made again with the right words, or taken back: leave-cluster.",
		"marsadm join-cluster hosta 10.0.0.1 --ip=10.0.0.2"},
	"leave-cluster": {"Refused as long as this node stores resources. A join-cluster that has not come about is taken back. --host=NAME --force takes out a node that is gone for good. marsd may be stopped afterwards.",
		"marsadm leave-cluster"},
	"merge-cluster": {"marsd looks at the cluster of PEER first: no host and no resource may have the same name in both. Then the trees flow together; the newer uuid wins, and nodes that are down now are admitted when they come back. Run it on one node of one cluster. --backup-dir=DIR keeps the links of before.",
		"marsadm merge-cluster hostx 10.0.1.1 --backup-dir=/root"},
	"merge-cluster-check":  {"Looks at the cluster of PEER and says what merge-cluster would say.", "marsadm merge-cluster-check hostx 10.0.1.1"},
	"merge-cluster-list":   {"Prints sections UUID:, IPs: and RESOURCEs: with full paths.", "marsadm merge-cluster-list"},
	"create-uuid":          {"For a tree that was made before clusters had an identity. Refused if there is one.", "marsadm create-uuid"},
	"lowlevel-ls-host-ips": {"One line for each host: HOST ADDRESS.", "marsadm lowlevel-ls-host-ips"},
	"lowlevel-set-host-ip": {"Without an address the name is looked up. All nodes connect anew.", "marsadm lowlevel-set-host-ip hostb 10.0.0.7"},
	"lowlevel-delete-host": {"The other nodes stop talking to HOST. Refused while it stores resources; leave-cluster is the orderly way.", "marsadm lowlevel-delete-host hostz"},

	"create-resource": {"What is on DISK stays. The size is that of the disk unless given (suffixes k m g t for thousands, K M G T for 1024s; a multiple of 4096). DEVICE is the name of the device, RES if left out. Does not wait: see wait-resource.",
		"marsadm create-resource r0 /dev/vg/r0 && marsadm wait-resource r0 is-device"},
	"join-resource":    {"DISK must be at least as big as the resource, and loses its content. The copy begins at once and goes on by itself.", "marsadm join-resource r0 /dev/vg/r0"},
	"leave-resource":   {"Only for a secondary that is down; its logs are deleted, its disk is not touched. --force leaves all the same and says what that loses; with --host=NAME it takes out a host that is gone.", "marsadm down r0 && marsadm leave-resource r0"},
	"delete-resource":  {"Refused while somebody stores the resource. --force deletes it under its members.", "marsadm delete-resource r0"},
	"activate-guest":   {"The node gets the news of the resource as fast as its members, without a disk.", "marsadm activate-guest r0"},
	"deactivate-guest": {"Refused for members.", "marsadm deactivate-guest r0"},

	"up":         {"The usual way to start a resource: attach, connect, resume-sync, resume-replay. Parts that cannot start do not keep the others from starting.", "marsadm up all"},
	"down":       {"The usual way to stop a resource. Refused while the device is in use; services that marsadm moves are stopped first.", "marsadm down r0"},
	"attach":     {"Waits until marsd has opened the disk.", "marsadm attach r0"},
	"detach":     {"Like down, but the other switches stay as they are. Waits until the disk is closed and can be opened by others.", "marsadm detach r0"},
	"connect":    {"", "marsadm connect r0"},
	"disconnect": {"News of the tree still travel.", "marsadm disconnect r0"},
	"switch":     {"The switch stays as it is over restarts. A name with -global turns it on all hosts, one with -local only here, as the plain name does.", "marsadm pause-replay r0"},

	"primary": {"Planned handover: refused while the device is in use, while this replica is not consistent, and in split brain. Waits until the old primary has let go and everything is replayed here; on failure the old primary is designated again. Services with systemd units move along. --force takes the role without the old primary's consent: pause-fetch first; prints what is lost. --ignore-sync: a sync of a third host may start over.",
		"marsadm primary r0"},
	"secondary": {"Nobody is designated afterwards, and replication stops on all hosts. For a handover use primary on the other host instead.", "marsadm secondary r0"},

	"invalidate": {"For the loser of a split brain, or a replica that is broken. Refused on the primary. Prints what only this host has and will be lost.", "marsadm invalidate r0"},
	"fake-sync":  {"A lie, unless the disks are equal: invalidate repairs it. For a file system that is made only after all members have joined.", "marsadm fake-sync r0"},
	"set-replay": {"For experts. Replay must be paused. Going forward leaves logs out and needs --force: no member has such a disk.", "marsadm pause-replay r0 && marsadm set-replay r0 12"},
	"resize":     {"On the primary, after the disks of all members have grown; without SIZE as much as the smallest holds. Never shrinks.", "lvextend -L +10G /dev/vg/r0 && marsadm resize r0"},

	"wait-cluster":  {"Peers that are known to be dead are not waited for, but named.", "marsadm wait-cluster"},
	"wait-resource": {"With is- the condition is what marsd reports, without what is ordered.", "marsadm wait-resource r0 is-device --timeout=60"},
	"wait-umount":   {"", "marsadm wait-umount r0 && marsadm secondary r0"},

	"cron":           {"Rotates logs on the primary, deletes what every member has replayed, removes old tombstones. --autoclean=DAYS also deletes links of hosts that nobody knows.", "*/10 * * * * root marsadm cron"},
	"log-rotate":     {"Nothing happens if the log is empty. --force rotates although there are many small logs.", "marsadm log-rotate r0"},
	"log-delete":     {"Never the last log, never one that a member still needs, and none while a member is joining. Files younger than two windows stay unless --force.", "marsadm log-delete-all all"},
	"log-purge-all":  {"Own logs only; with --force those of other hosts, too. Prints names and bytes before it deletes.", "marsadm log-purge-all r0"},
	"err-purge-all":  {"", "marsadm err-purge-all r0"},
	"link-purge-all": {"A tombstone is old when all hosts have been heard since it was written.", "marsadm link-purge-all r0"},

	"set-systemd-unit":       {"DEFAULT stands for the first template with a line \"# DEFAULT_START\" (\"# DEFAULT_STOP\"); STOP is START if left out or empty; \"\" alone takes both away. Generated files that are no longer needed are removed, and stopped unless marked KEEP_RUNNING. Templates are in systemd-templates below the directories of MARS_PATH.", "marsadm set-systemd-unit r0 DEFAULT"},
	"get-systemd-unit":       {"START STOP, or nothing.", "marsadm get-systemd-unit r0"},
	"set-systemd-want":       {"Stops the services with (none), starts them again with the name of the primary. Waits until the device is closed or open.", "marsadm set-systemd-want r0 '(none)'"},
	"get-systemd-want":       {"", "marsadm get-systemd-want r0"},
	"systemd-trigger":        {"To be used after templates have changed.", "marsadm systemd-trigger all"},
	"systemd-trigger-extern": {"Starts the start unit if the services are wanted here, this host is primary and the device is there; else stops the stop unit.", "marsadm systemd-trigger-extern r0"},

	"set-emergency-limit":         {"When less than PERCENT of the space behind the reserves of marsd is left on this host, the resource goes on without a log: the higher, the earlier. 0 takes the limit away.", "marsadm set-emergency-limit r0 20"},
	"set-traffic-limit":           {"The tightest of the limits that apply counts. Log goes before sync on its own; a limit of sync keeps a line free that others use, too.", "marsadm set-traffic-limit sync 12800"},
	"set-resource-traffic-limit":  {"", "marsadm set-resource-traffic-limit r0 log 5000"},
	"get-traffic-limit":           {"", "marsadm get-traffic-limit"},
	"set-sync-mode":               {"async: for nothing, the way of MARS. near: until MEMBERS (1) others have received the log, at most MILLISECONDS (100); after that for none until they have caught up, which view shows. sync: for ever. After a forced failover to a member that was near, nothing is lost that a FLUSH had confirmed.", "marsadm set-sync-mode r0 near 1 50"},
	"get-sync-mode":               {"", "marsadm get-sync-mode r0"},
	"set-replay-delay":            {"The log is fetched at once, and replayed when it is SECONDS old: what somebody deletes by mistake is still here. pause-replay keeps it, 0 catches up.", "marsadm set-replay-delay r0 3600"},
	"get-replay-delay":            {"", "marsadm get-replay-delay r0"},
	"get-emergency-limit":         {"", "marsadm get-emergency-limit r0"},
	"set-global-sync-limit-value": {"", "marsadm set-global-sync-limit-value 2"},
	"get-global-sync-limit-value": {"", "marsadm get-global-sync-limit-value"},
	"set-connect-pref-list":       {"The first one that has as much of the log as this host is asked; if none has, whoever has it.", "marsadm set-connect-pref-list r0 hostc,hosta"},
	"get-connect-pref-list":       {"", "marsadm get-connect-pref-list r0"},
	"flags":                       {"Flags are names or numbers, joined by |. They concern nodes that run the original; marsd chooses for itself.", "marsadm set-global-disabled-log-digests 'CHKSUM_MD5|CHKSUM_SHA1'"},
	"set-link":                    {"PATH is absolute or relative to the root. Outside of userspace only with --force: marsd acts upon links.", "marsadm set-link yes userspace/backup-done"},
	"get-link":                    {"", "marsadm get-link uuid"},
	"delete-file":                 {"", "marsadm delete-file userspace/backup-done"},

	"view":        {"The status of one, several or all resources; help view lists all names.", "marsadm view all"},
	"role":        {"\"I am actually primary\" or secondary, and who should be primary if that differs.", "marsadm role r0"},
	"show":        {"Paths are relative to the root.", "marsadm show all | grep is-primary"},
	"show-errors": {"", "marsadm show-errors r0"},
	"show-state":  {"is_primary, becoming_primary, or secondary with inconsistent, outdated or uptodate.", "marsadm show-state r0"},
	"cat":         {"Stamps become local times, error numbers names.", "marsadm cat /mars/resource-r0/actual-hosta/msg-err-replay-stop"},
	"log-dump":    {"offset, seq, stamp, position, length, code, digest, compression and verdict of each record.", "marsadm log-dump /mars/resource-r0/log-000000001-hosta --json"},
	"log-verify":  {"Names the offset and the reason of the first damage.", "marsadm log-verify /mars/resource-r0/log-000000001-hosta"},
	"version":     {"", "marsadm version"},
	"help":        {"", "marsadm help primary"},
	"completion":  {"The completion offers resources, hosts, views and values as they are in the tree at that moment.", "source <(marsadm completion bash)"},
}

// families are commands that share a detail.
var families = map[string]string{
	"wait-connect": "wait-cluster", "update-cluster": "wait-cluster", "emergency-limit": "set-emergency-limit",
	"log-delete-all": "log-delete", "log-delete-one": "log-delete", "log-delete-all-replayed": "log-delete",
	"set-sync-limit-value": "set-global-sync-limit-value", "get-sync-limit-value": "get-global-sync-limit-value",
	"state": "role", "mars-state": "show-state", "show-info": "view", "mars-info": "view", "view-NAME": "view",
	"set-disabled-digests": "flags", "get-disabled-digests": "flags",
	"connect-local": "connect", "connect-global": "connect", "disconnect-local": "disconnect", "disconnect-global": "disconnect",
}

// detailOf finds what there is to say about a command.
func detailOf(name string) (detail, bool) {
	key := name
	switch f, ok := families[name]; {
	case ok:
		key = f
	case hasAnyPrefix(name, "pause-", "resume-"):
		key = "switch"
	case hasAnyPrefix(name, "set-global-enabled-", "set-global-disabled-", "get-global-enabled-", "get-global-disabled-"):
		key = "flags"
	}
	d, ok := details[key]
	if key != name && (hasAnyPrefix(name, "pause-", "resume-", "connect-", "disconnect-") || key == "log-delete") {
		d.example = "marsadm " + name + " r0"
	}
	return d, ok
}
