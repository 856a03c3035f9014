package oracle

import "mars/internal/nbdclient"

var _ Client = (*nbdclient.Client)(nil)
