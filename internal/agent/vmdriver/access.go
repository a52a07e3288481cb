package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/access"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/qemu/qga"
)

// kind is how errors name an instance.
var kind = schema.GroupResource{Group: "kubevirt.io", Resource: "virtualmachineinstance"}

// maxListed is how many users and file systems the description of a guest lists.
const maxListed = 10

// Machine implements access.Machines.
func (d *Driver) Machine(namespace, name string) (access.Machine, error) {
	m := d.lookup(types.NamespacedName{Namespace: namespace, Name: name})
	if m == nil {
		return nil, apierrors.NewNotFound(kind, name)
	}
	vmi, domain := m.current()
	if vmi == nil {
		return nil, apierrors.NewNotFound(kind, name)
	}
	return &attached{vmi: vmi, domain: domain}, nil
}

// attached is a machine as one request sees it.
type attached struct {
	vmi    *virtv1.VirtualMachineInstance
	domain *domain // nil: not running here, or not taken up yet
}

// errNotAttached is for the moment between the API's word that a guest runs and this agent's having taken it up.
func (a *attached) check() error {
	if a.domain == nil || a.domain.lost() {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("the node's agent is not connected to %s yet; try again", a.vmi.Name))
	}
	return nil
}

func (a *attached) VMI() *virtv1.VirtualMachineInstance { return a.vmi }

func (a *attached) DialSocket(ctx context.Context, name string) (net.Conn, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	return a.domain.dir.Dial(ctx, name)
}

// DialGuest uses the first NIC that the pod has a way to.
func (a *attached) DialGuest(ctx context.Context, network string, port uint16) (net.Conn, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	all := a.domain.list()
	n := slices.IndexFunc(all, func(c card) bool { return c.Dial != nil })
	if n < 0 {
		return nil, errors.New("no network of the guest can be reached from its pod; connect to its address instead")
	}
	return all[n].Dial(ctx, network, port)
}

func (a *attached) Pause(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context, d *domain) error { return d.monitor.Pause(ctx) })
}

func (a *attached) Unpause(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context, d *domain) error { return d.monitor.Resume(ctx) })
}

func (a *attached) Reset(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context, d *domain) error { return d.monitor.Reset(ctx) })
}

func (a *attached) SoftReboot(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context, d *domain) error { return d.softReboot(ctx) })
}

func (a *attached) do(ctx context.Context, work func(context.Context, *domain) error) error {
	if err := a.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	return work(ctx, a.domain)
}

// ask puts a question to the guest agent.
func ask[T any](ctx context.Context, a *attached, question func(context.Context, *qga.Client) (T, error)) (answer T, err error) {
	err = a.do(ctx, func(ctx context.Context, d *domain) (err error) {
		answer, err = question(ctx, d.agent)
		return err
	})
	return answer, err
}

func (a *attached) Users(ctx context.Context) (virtv1.VirtualMachineInstanceGuestOSUserList, error) {
	users, err := ask(ctx, a, func(ctx context.Context, c *qga.Client) ([]qga.User, error) { return c.Users(ctx) })
	return virtv1.VirtualMachineInstanceGuestOSUserList{Items: describeUsers(users)}, err
}

func (a *attached) Filesystems(ctx context.Context) (virtv1.VirtualMachineInstanceFileSystemList, error) {
	all, err := ask(ctx, a, func(ctx context.Context, c *qga.Client) ([]qga.Filesystem, error) { return c.Filesystems(ctx) })
	return virtv1.VirtualMachineInstanceFileSystemList{Items: describeFilesystems(all)}, err
}

// GuestInfo asks for everything; what the agent does not know is left out.
func (a *attached) GuestInfo(ctx context.Context) (virtv1.VirtualMachineInstanceGuestAgentInfo, error) {
	return ask(ctx, a, func(ctx context.Context, c *qga.Client) (virtv1.VirtualMachineInstanceGuestAgentInfo, error) {
		info, err := c.Info(ctx)
		if err != nil {
			return virtv1.VirtualMachineInstanceGuestAgentInfo{}, err
		}
		answer := virtv1.VirtualMachineInstanceGuestAgentInfo{GAVersion: info.Version}
		for _, command := range info.Commands {
			answer.SupportedCommands = append(answer.SupportedCommands, virtv1.GuestAgentCommandInfo{Name: command.Name, Enabled: command.Enabled})
		}
		if os, err := c.OS(ctx); err == nil {
			answer.OS = vmstate.GuestOS(os)
		}
		answer.Hostname, _ = c.Hostname(ctx)
		if zone, err := c.Timezone(ctx); err == nil {
			answer.Timezone = fmt.Sprintf("%s, %d", zone.Zone, zone.Offset)
		}
		if users, err := c.Users(ctx); err == nil {
			answer.UserList = firstOf(describeUsers(users))
		}
		if all, err := c.Filesystems(ctx); err == nil {
			answer.FSInfo.Filesystems = firstOf(describeFilesystems(all))
		}
		if status, err := c.FreezeStatus(ctx); err == nil && status == "frozen" {
			answer.FSFreezeStatus = status
		}
		return answer, nil
	})
}

// Addresses implements access.Machine.
func (a *attached) Addresses() ([]access.AddressSources, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	all := []access.AddressSources{}
	for _, s := range vmstate.SourcesOf(a.vmi, a.domain.describe()) {
		all = append(all, access.AddressSources{
			Interface: s.Interface, Network: words(s.Network), Agent: words(s.Agent), Observed: words(s.Observed), Disagree: s.Disagree(),
		})
	}
	return all, nil
}

func words(list []netip.Addr) (all []string) {
	for _, ip := range list {
		all = append(all, ip.String())
	}
	return all
}

func firstOf[T any](all []T) []T { return all[:min(len(all), maxListed)] }

func describeUsers(users []qga.User) []virtv1.VirtualMachineInstanceGuestOSUser {
	all := []virtv1.VirtualMachineInstanceGuestOSUser{}
	for _, u := range users {
		all = append(all, virtv1.VirtualMachineInstanceGuestOSUser{UserName: u.Name, Domain: u.Domain, LoginTime: u.LoginTime})
	}
	return all
}

func describeFilesystems(filesystems []qga.Filesystem) []virtv1.VirtualMachineInstanceFileSystem {
	all := []virtv1.VirtualMachineInstanceFileSystem{}
	for _, f := range filesystems {
		described := virtv1.VirtualMachineInstanceFileSystem{
			DiskName: f.Name, MountPoint: f.Mountpoint, FileSystemType: f.Type, UsedBytes: int(f.UsedBytes), TotalBytes: int(f.TotalBytes),
		}
		for _, disk := range f.Disks {
			described.Disk = append(described.Disk, virtv1.VirtualMachineInstanceFileSystemDisk{Serial: disk.Serial, BusType: disk.BusType})
		}
		all = append(all, described)
	}
	return all
}
