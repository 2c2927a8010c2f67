package main

import (
	"io"
	"net"
	"sync"
)

// proxy stands between a client and the endpoint, so that a part can cut their connections.
type proxy struct {
	target   string
	address  string
	mutex    sync.Mutex
	listener net.Listener
	open     map[net.Conn]bool
	down     bool
}

func newProxy(target string) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{target: target, address: listener.Addr().String(), listener: listener, open: map[net.Conn]bool{}}
	go p.accept()
	return p, nil
}

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.target)
		if err != nil || !p.keep(near, far) {
			near.Close()
			continue
		}
		go p.pump(near, far)
		go p.pump(far, near)
	}
}

// keep notes a connection, unless the proxy is cut.
func (p *proxy) keep(near, far net.Conn) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.down {
		far.Close()
		return false
	}
	p.open[near], p.open[far] = true, true
	return true
}

func (p *proxy) pump(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.open, from)
}

// cut closes every connection; with stay, new ones are closed too until restore.
func (p *proxy) cut(stay bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.down = stay
	for connection := range p.open {
		connection.Close()
	}
}

func (p *proxy) restore() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.down = false
}
