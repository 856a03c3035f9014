package macro

import (
	"strings"
	"testing"
)

// referenceNames are the macros of reference marsadm.md 8.2 and 8.3.
const referenceNames = `is-attach is-sync is-fetch is-replay is-primary is-secondary is-emergency
	todo-attach todo-sync todo-fetch todo-replay todo-primary todo-secondary does todo get-primary actual-primary
	nr-attach nr-sync nr-fetch nr-replay nr-primary nr-secondary nr-emergency is-split-brain is-orphan is-consistent
	is-almost-consistent is-alive is-module-loaded is-member is-guest get-disk get-device disk-present disk-error
	device-present device-opened device-nrflying device-error device-completion-stamp device-completion-age
	device-ops-rate sync-ops-rate fetch-ops-rate replay-ops-rate device-rate device-amount-rate sync-rate
	sync-amount-rate fetch-rate fetch-amount-rate replay-rate replay-amount-rate work-rate sync-remain fetch-remain
	replay-remain work-remain known-device-mounted known-device-mountpoint known-device-fstype
	known-device-mountflags replay-code sync-size sync-pos replay-pos fetch-pos replay-size fetch-size work-size
	work-pos sync-rest fetch-rest replay-rest work-rest sync-reached fetch-reached replay-reached work-reached
	sync-threshold-reached sync-almost-reached sync-percent sync-permille sync-vector work-vector summary-vector
	replay-lognr replay-basenr fetch-lognr work-lognr replay-logcount fetch-logcount work-logcount writeback-rest
	deletable-size occupied-size disk-size resource-size device-size resource-possible-size alive-timestamp
	fetch-timestamp replay-timestamp work-timestamp alive-age fetch-age replay-age work-age alive-lag fetch-lag
	replay-lag work-lag rest-space total-space tree uuid all-msg the-msg all-pretty-msg the-pretty-global-err-msg
	all-count the-global-wrn-count the-pretty-count get-resource-fat get-resource-err get-resource-wrn
	get-resource-fat-count get-resource-err-count get-resource-wrn-count get-log-status cluster-peers resource-peers
	guest-peers configured-peers count-cluster-peers count-resource-peers count-guest-peers count-configured-peers
	cluster-members resource-members guest-members my-resources all-resources my-members all-members my-guests
	all-guests count-my-resources count-all-guests potential-features implemented-features usable-features
	implemented-digests usable-digests implemented-compressions usable-compressions used-log-digest used-net-digest
	used-log-compression used-net-compression enabled-log-compressions enabled-net-compressions disabled-log-digests
	disabled-net-digests tree-version features-version global-sync-limit-value systemd-unit time real-time
	syncpos-size syncpos-pos errno-text
	default default-resource default-global default-header default-footer device-info device-stats diskstate
	replstate flags todo-role role primarynode commstate syncinfo replinfo sync-line fetch-line replay-line
	outdated-flags resource-errors comminfo diskstate-1and1 replstate-1and1 flags-1and1 role-1and1
	primarynode-1and1 outdated-flags-1and1 syncinfo-1and1 replinfo-1and1 sync-line-1and1 fetch-line-1and1
	replay-line-1and1 resource-errors-1and1 1and1 state cstate dstate status`

func TestReferenceNames(t *testing.T) {
	var missing []string
	for _, n := range strings.Fields(referenceNames) {
		if _, ok := Lookup(n); !ok {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		t.Errorf("missing: %s", strings.Join(missing, " "))
	}
}
