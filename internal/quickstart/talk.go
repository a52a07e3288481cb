package quickstart

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"sort"
	"strings"

	"patchbay/internal/guestshell"
)

// Ping is what a guest's ping said of another guest.
type Ping struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Address string `json:"address"`
	Summary string `json:"summary"` // the tool's own last lines
}

func (p Ping) String() string {
	return fmt.Sprintf("%s pings %s (%s): %s", p.From, p.To, p.Address, p.Summary)
}

// Balance is who answered requests to the Service.
type Balance struct {
	Service  string         `json:"service"`
	From     string         `json:"from"`
	Address  string         `json:"address"`
	Requests int            `json:"requests"`
	Answers  map[string]int `json:"answers"` // by the name that the guest's web server gives
}

func (b Balance) String() string {
	var parts []string
	for name, n := range b.Answers {
		parts = append(parts, fmt.Sprintf("%s answered %d", name, n))
	}
	sort.Strings(parts)
	return fmt.Sprintf("%s asks http://%s (%s) %d times: %s", b.From, b.Service, b.Address, b.Requests, strings.Join(parts, ", "))
}

// login is the account of the example's guest.
var login = guestshell.Login{User: "root", Password: "patchbay"}

// requests is how often the Service is asked: enough that one backend of two is missed once in 2^15 runs.
const requests = 16

// talk makes the first machine speak with the second and with the Service.
func (d *demo) talk(ctx context.Context, machines []Machine) ([]Ping, Balance, error) {
	from, to := machines[0], machines[1]
	d.Progress(fmt.Sprintf("waiting for a shell in %s", from.Name))
	console, err := guestshell.Dial(ctx, d.REST, d.Namespace, from.Name)
	if err != nil {
		return nil, Balance{}, err
	}
	shell := guestshell.New(console, login)
	defer shell.Close()
	if err := shell.Ready(ctx); err != nil {
		return nil, Balance{}, fmt.Errorf("%s: %w", from.Name, err)
	}
	var pings []Ping
	for _, address := range to.IPs {
		d.Progress(fmt.Sprintf("%s pings %s", from.Name, address))
		ping, err := ping(ctx, shell, address)
		if err != nil {
			return nil, Balance{}, err
		}
		ping.From, ping.To = from.Name, to.Name
		pings = append(pings, ping)
	}
	balance, err := d.balance(ctx, shell, from)
	return pings, balance, err
}

var (
	packets   = regexp.MustCompile(`\d+ packets transmitted.*`)
	roundTrip = regexp.MustCompile(`(?:round-trip|rtt) .*`)
)

// ping waits for the first answer, which may take as long as the other guest's boot, and then measures.
func ping(ctx context.Context, shell *guestshell.Shell, address string) (Ping, error) {
	out, err := shell.Run(ctx, fmt.Sprintf("until ping -c1 -W1 %[1]s >/dev/null 2>&1; do sleep 0.2; done; ping -c3 -i0.3 -W2 %[1]s", address))
	if err != nil {
		return Ping{}, err
	}
	return Ping{Address: address, Summary: packets.FindString(out) + "; " + roundTrip.FindString(out)}, nil
}

func (d *demo) balance(ctx context.Context, shell *guestshell.Shell, from Machine) (Balance, error) {
	ips, err := d.serviceIPs(ctx)
	if err != nil {
		return Balance{}, err
	}
	address, err := netip.ParseAddr(ips[0])
	if err != nil {
		return Balance{}, fmt.Errorf("cluster IP of Service %s: %w", d.service, err)
	}
	d.Progress(fmt.Sprintf("%s asks Service %s", from.Name, d.service))
	// the web servers of both guests have to be up before the balance means something
	out, err := shell.Run(ctx, fmt.Sprintf(`for n in $(seq %d); do until curl -sfm2 http://%s/hostname 2>/dev/null; do sleep 0.2; done; echo; done`,
		requests, d.service))
	if err != nil {
		return Balance{}, err
	}
	answers := map[string]int{}
	for _, name := range strings.Fields(out) {
		answers[name]++
	}
	return Balance{Service: d.service, From: from.Name, Address: address.String(), Requests: requests, Answers: answers}, nil
}
