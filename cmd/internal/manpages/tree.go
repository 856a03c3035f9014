package main

import "mars/cmd/internal/roff"

// tree is the page mars(5).
func tree() string {
	p := roff.New("mars", 5, "the symlink tree, the logfiles and the templates of MARS")
	p.Section("DESCRIPTION")
	p.Para("Below the root, usually /mars, all state of a cluster is in symlinks: the path is a key, the target its value, the time stamp of the link decides which of two values is newer. marsd(8) exchanges them with the other nodes; `ls -l` shows them, `ln -sfn VALUE PATH` changes them and is taken up within a second. A link to .deleted is a tombstone: what was there is deleted, and that has to be told to others. H is a host, R a resource, N a number of nine digits.")
	p.Section("THE CLUSTER")
	items(p, [][2]string{
		{"uuid", "Identity of the cluster; (any) while a node joins."},
		{"ips/ip-H", "Address of host H: ADDR or ADDR:PORT."},
		{"actual-H/time, alive", "Sign of life, renewed every second; 1 while marsd runs."},
		{"actual-H/msg-*", "What H reports, as STAMP STAMP TEXT, or OK."},
		{"actual-H/rest-space, total-space, emergency", "Space of the root in GiB; whether it is short of it."},
		{"defaults-H/sync-limit", "How many full syncs may run at once on H."},
		{"todo-global/uuid-UUID", "Nodes that still have UUID belong to this cluster: it has been merged."},
		{"local-H/", "Requests of marsadm to marsd of the same node; never leaves the host."},
	})
	p.Section("A RESOURCE")
	p.Para("Below resource-R/:")
	items(p, [][2]string{
		{"size", "Bytes of the device."},
		{"primary", "The designated primary, or (none)."},
		{"data-H, device-H", "The backing disk at H, and the name of the device; who has a disk is a member, who has only a device link a guest."},
		{"actsize-H", "Bytes of the disk at H."},
		{"syncstatus-H, syncpos-H", "Bytes that have been synced; the position that replay must reach until the copy is consistent."},
		{"replay-H", "log-N-ORIGIN,MIN,LEN: what the disk of H holds for certain, and how far behind it may be dirty."},
		{"version-N-H", "DIGEST,log-N-ORIGIN,POS:PREDECESSOR: how long log N is as H knows it, and what came before it. From these links split brain is seen."},
		{"maxnr", "The highest number of a log so far."},
		{"todo-H/attach, connect, allow-replay, sync", "Switches: 1 or 0."},
		{"todo-H/emergency-limit", "When less than this percentage of the space is left, H stops logging the resource."},
		{"actual-H/is-attached, is-primary, is-copying, is-replaying, is-syncing, if-on, open-count", "What is the case at H."},
		{"actual-H/replay-code, disk-error, has-emergency, log-damage, msg-*", "What is wrong there."},
		{"systemd-start-unit, systemd-stop-unit, systemd-want", "Services that follow the primary, and where they are wanted."},
		{"systemd-trigger", "A regular file that marsd rewrites when these change; for a .path unit to watch."},
		{"userspace/", "For administrators and their scripts: marsd passes it on and does not look into it."},
		{"log-N-ORIGIN", "A transaction logfile, written by ORIGIN. `marsadm log-dump` prints it."},
	})
	p.Section("SYSTEMD TEMPLATES")
	p.Para("In systemd-templates below the directories of MARS_PATH. Of a template NAME.service (mount, path, target, ...) a unit is made in /run/systemd/system, of NAME.script an executable in /etc/marsadm/systemd-generated-scripts, which is run with start or stop. In names and texts:")
	items(p, [][2]string{
		{"@{VAR}", "A variable: res, resdir, mars, host, node, dev, disk, socket, start_unit, stop_unit, marsadm, cmd."},
		{"@escvar{VAR}", "Its value, escaped like a path in the name of a unit."},
		{"@esc{TEXT}", "TEXT, escaped likewise."},
		{"@verbatim{TEXT}", "TEXT as it is."},
		{"@eval{MACRO}", "A macro, as `marsadm view` evaluates it."},
		{"^{VAR}", "In names: any text; it becomes the value of VAR."},
	})
	p.Para("Units that are named in Requires=, After=, Unit= and the like, or in a comment line # ALSO=NAME, are generated as well. Comment lines with a marker: DEFAULT_START and DEFAULT_STOP (what the word DEFAULT of set-systemd-unit stands for; other words in capitals likewise), WATCH_START (the unit that watches systemd-trigger), ALWAYS_START, ALWAYS_DISABLED, KEEP_RUNNING. A unit that watches, and what it starts:")
	p.Example("mars-@{res}-trigger.path\n    # WATCH_START\n    # ALWAYS_START\n    # ALSO=mars-@{res}-trigger.service\n    [Path]\n    PathModified=@{resdir}/systemd-trigger\n\nmars-@{res}-trigger.service\n    [Service]\n    Type=oneshot\n    ExecStart=@{marsadm} --root=@{mars} systemd-trigger-extern @{res}")
	p.Section("SEE ALSO")
	p.Para("marsadm(8), marsd(8); docs/TREE-SCHEMA.md, docs/LOG-FORMAT.md")
	return p.String()
}

func items(p *roff.Page, list [][2]string) {
	for _, i := range list {
		p.Item(i[0], i[1])
	}
}
