package network

// Running tells whether anything of a network beside the default one is left: somebody on it, or rows in the overlay's database.
// It is true while that is not known.
func (n *Network) Running(name string) bool {
	select {
	case <-n.recovered:
	default:
		return true
	}
	if _, known := n.tenants.config(name); known {
		return true
	}
	return !n.Rows.Gone(networkOwner(name)) || !n.Rows.Gone(gatewayOwner(name))
}
