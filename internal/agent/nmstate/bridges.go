package nmstate

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"patchbay/internal/nmstate"
)

// The netlink library leaves most attributes of bridges out, and sysfs shows those of the namespace that it was mounted in. So they
// are read and written here. Times are in hundredths of a second.

// slaveData is IFLA_INFO_SLAVE_DATA of linux/if_link.h.
const slaveData = 5

// rawBridge is what the kernel says of a bridge or of a port.
type rawBridge struct {
	options *nmstate.BridgeOptions
	port    *nmstate.Port
}

// readBridges reads all bridges and ports of the calling thread's namespace, by index.
func readBridges() (map[int]rawBridge, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	found := map[int]rawBridge{}
	for _, m := range messages {
		info := nl.DeserializeIfInfomsg(m)
		attributes, err := nl.ParseRouteAttrAsMap(m[info.Len():])
		if err != nil {
			return nil, fmt.Errorf("list bridges: %w", err)
		}
		linkInfo, err := nl.ParseRouteAttrAsMap(attributes[unix.IFLA_LINKINFO].Value)
		if err != nil {
			return nil, fmt.Errorf("list bridges: %w", err)
		}
		raw := rawBridge{}
		if text(linkInfo[nl.IFLA_INFO_KIND].Value) == "bridge" {
			if raw.options, err = parseOptions(linkInfo[nl.IFLA_INFO_DATA].Value); err != nil {
				return nil, err
			}
		}
		if text(linkInfo[nl.IFLA_INFO_SLAVE_KIND].Value) == "bridge" {
			if raw.port, err = parsePort(linkInfo[slaveData].Value); err != nil {
				return nil, err
			}
		}
		found[int(info.Index)] = raw
	}
	return found, nil
}

func text(value []byte) string {
	if n := len(value); n > 0 && value[n-1] == 0 {
		value = value[:n-1]
	}
	return string(value)
}

// number reads an attribute of one, two or four bytes.
func number(value []byte) *int {
	switch len(value) {
	case 1:
		return new(int(value[0]))
	case 2:
		return new(int(binary.NativeEndian.Uint16(value)))
	case 4:
		return new(int(binary.NativeEndian.Uint32(value)))
	}
	return nil
}

func boolean(value []byte) *bool {
	if n := number(value); n != nil {
		return new(*n != 0)
	}
	return nil
}

func seconds(value []byte) *int {
	if n := number(value); n != nil {
		return new(*n / 100)
	}
	return nil
}

func parseOptions(data []byte) (*nmstate.BridgeOptions, error) {
	a, err := nl.ParseRouteAttrAsMap(data)
	if err != nil {
		return nil, fmt.Errorf("read a bridge's options: %w", err)
	}
	return &nmstate.BridgeOptions{
		STP: &nmstate.STP{
			Enabled: boolean(a[nl.IFLA_BR_STP_STATE].Value), ForwardDelay: seconds(a[nl.IFLA_BR_FORWARD_DELAY].Value),
			HelloTime: seconds(a[nl.IFLA_BR_HELLO_TIME].Value), MaxAge: seconds(a[nl.IFLA_BR_MAX_AGE].Value), Priority: number(a[nl.IFLA_BR_PRIORITY].Value),
		},
		MACAgeingTime:     seconds(a[nl.IFLA_BR_AGEING_TIME].Value),
		GroupForwardMask:  number(a[nl.IFLA_BR_GROUP_FWD_MASK].Value),
		MulticastSnooping: boolean(a[nl.IFLA_BR_MCAST_SNOOPING].Value),
		VLANDefaultPVID:   number(a[nl.IFLA_BR_VLAN_DEFAULT_PVID].Value),
		VLANFiltering:     boolean(a[nl.IFLA_BR_VLAN_FILTERING].Value),
	}, nil
}

func parsePort(data []byte) (*nmstate.Port, error) {
	a, err := nl.ParseRouteAttrAsMap(data)
	if err != nil {
		return nil, fmt.Errorf("read a port's options: %w", err)
	}
	return &nmstate.Port{
		HairpinMode: boolean(a[nl.IFLA_BRPORT_MODE].Value), PathCost: number(a[nl.IFLA_BRPORT_COST].Value), Priority: number(a[nl.IFLA_BRPORT_PRIORITY].Value),
	}, nil
}

// attribute is one value to be written, with its size in bytes.
type attribute struct {
	kind  int
	value *int
	size  int
}

func hundredths(n *int) *int {
	if n == nil {
		return nil
	}
	return new(*n * 100)
}

func ofBool(b *bool) *int {
	switch {
	case b == nil:
		return nil
	case *b:
		return new(1)
	}
	return new(0)
}

// writeOptions changes the options of a bridge; nil ones stay.
func writeOptions(index int, o nmstate.BridgeOptions) error {
	stp := nmstate.STP{}
	if o.STP != nil {
		stp = *o.STP
	}
	request, info := linkRequest(index)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	add(data, []attribute{
		{nl.IFLA_BR_STP_STATE, ofBool(stp.Enabled), 4}, {nl.IFLA_BR_FORWARD_DELAY, hundredths(stp.ForwardDelay), 4},
		{nl.IFLA_BR_HELLO_TIME, hundredths(stp.HelloTime), 4}, {nl.IFLA_BR_MAX_AGE, hundredths(stp.MaxAge), 4},
		{nl.IFLA_BR_PRIORITY, stp.Priority, 2}, {nl.IFLA_BR_AGEING_TIME, hundredths(o.MACAgeingTime), 4},
		{nl.IFLA_BR_GROUP_FWD_MASK, o.GroupForwardMask, 2}, {nl.IFLA_BR_MCAST_SNOOPING, ofBool(o.MulticastSnooping), 1},
		{nl.IFLA_BR_VLAN_DEFAULT_PVID, o.VLANDefaultPVID, 2}, {nl.IFLA_BR_VLAN_FILTERING, ofBool(o.VLANFiltering), 1},
	})
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// writePort changes the options of a bridge's port; nil ones stay.
func writePort(index int, p nmstate.Port) error {
	request, info := linkRequest(index)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(slaveData, nil)
	add(data, []attribute{{nl.IFLA_BRPORT_MODE, ofBool(p.HairpinMode), 1}, {nl.IFLA_BRPORT_COST, p.PathCost, 4}, {nl.IFLA_BRPORT_PRIORITY, p.Priority, 2}})
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func linkRequest(index int) (*nl.NetlinkRequest, *nl.RtAttr) {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	request.AddData(info)
	return request, info
}

func add(to *nl.RtAttr, attributes []attribute) {
	for _, a := range attributes {
		if a.value == nil {
			continue
		}
		data := make([]byte, a.size)
		switch a.size {
		case 1:
			data[0] = byte(*a.value)
		case 2:
			binary.NativeEndian.PutUint16(data, uint16(*a.value))
		case 4:
			binary.NativeEndian.PutUint32(data, uint32(*a.value))
		}
		to.AddRtAttr(a.kind, data)
	}
}
