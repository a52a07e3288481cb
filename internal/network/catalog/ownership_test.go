package catalog

import (
	"strings"
	"testing"
)

const (
	ofCluster = "cluster_udn_blue"
	ofBlue    = "blue_net"
	kept      = "the network belongs to somebody else"
)

// A network that somebody asked for is for the definitions that are made from it, whoever was there first.
func TestStrangersDoNotGetIn(t *testing.T) {
	t.Run("the cluster's name is never free", func(t *testing.T) {
		b := newBook(t)
		b.put("red/own", ofCluster, primary, 0, "", kept)
		b.put("red/second", ofCluster, bare, 0, "", kept)
		if len(b.Names()) > 0 {
			t.Errorf("there are networks %v", b.Names())
		}
	})
	t.Run("a stranger comes later", func(t *testing.T) {
		b := newBook(t)
		b.putMade(ofCluster, "blue/blue", ofCluster, primary, 0, ofCluster, "")
		b.putMade(ofBlue, "blue/net", ofBlue, bare, 0, ofBlue, "")
		for _, key := range []string{"red/own", "blue/own"} {
			b.put(key, ofCluster, primary, 0, "", kept)
			b.put(key, ofBlue, bare, 0, "", kept)
			b.put(key, ofBlue, primary, 0, "", kept)
		}
		if n, _ := b.Network(ofCluster); strings.Join(n.Namespaces, " ") != "blue" {
			t.Errorf("the network is of namespaces %v", n.Namespaces)
		}
	})
	t.Run("a stranger is there before", func(t *testing.T) {
		b := newBook(t)
		b.put("red/own", ofBlue, primary, 0, ofBlue, "")
		_, again := b.Put("blue/net", nad("blue/net", ofBlue, bare), 0, ofBlue)
		if strings.Join(again, " ") != "red/own" {
			t.Errorf("looked at again: %v", again)
		}
		if d, _ := b.Definition("red/own"); d.Err == nil || !strings.Contains(d.Err.Error(), kept) {
			t.Errorf("the stranger has error %v", d.Err)
		}
		if d, _ := b.Definition("blue/net"); d.Err != nil {
			t.Error(d.Err)
		}
		b.put("red/own", ofBlue, primary, 0, "", kept)
	})
	t.Run("a stranger's pods are there before", func(t *testing.T) {
		b := newBook(t)
		b.put("red/own", ofBlue, primary, 0, ofBlue, "")
		b.used[ofBlue] = true
		b.putMade(ofBlue, "blue/net", ofBlue, primary, 0, "", "definitions made by hand have it (red/own) and pods are on it")
		b.Remove("red/own") // its pods still run
		b.putMade(ofBlue, "blue/net", ofBlue, primary, 0, "", "pods are on it")
		b.used[ofBlue] = false
		b.putMade(ofBlue, "blue/net", ofBlue, primary, 0, ofBlue, "")
	})
	t.Run("a network that goes while pods are on it", func(t *testing.T) {
		b := newBook(t)
		b.putMade(ofCluster, "blue/blue", ofCluster, primary, 0, ofCluster, "")
		b.used[ofCluster] = true
		b.Remove("blue/blue")
		b.put("red/own", ofCluster, primary, 0, "", kept)
		b.putMade(ofCluster, "blue/blue", ofCluster, primary, 0, ofCluster, "")
	})
	t.Run("a definition made for another network", func(t *testing.T) {
		b := newBook(t)
		b.putMade("red_net", "red/net", ofBlue, bare, 0, "", kept)
		b.putMade("red_net", "red/net", "red_net", bare, 0, "red_net", "")
		b.putMade("red_net", "red/net", ofBlue, bare, 0, "red_net", kept) // somebody changed it
		b.putMade("red_net", "red/net", "red_net", bare, 0, "red_net", "")
		b.put("red/net", "red_net", bare, 0, "", "") // and took its owner off
	})
}

// By hand a primary network is its namespace's; secondary ones are shared by their name, as documented.
func TestHandMadePrimaryNetworksAreNotShared(t *testing.T) {
	b := newBook(t)
	b.put("blue/net", "net", primary, 0, "net", "")
	b.put("red/net", "net", primary, 0, "", "it is the primary network of another namespace")
	b.put("blue/again", "net", primary, 0, "net", "")
	b.used["net"] = true
	b.Remove("blue/again")
	b.Remove("blue/net")
	b.put("red/net", "net", primary, 0, "", "it is the primary network of another namespace")
	b.used["net"] = false
	b.put("red/net", "net", primary, 0, "net", "")

	b.put("blue/l2", "l2", bare, 0, "l2", "")
	b.put("red/l2", "l2", bare, 0, "l2", "")
}
