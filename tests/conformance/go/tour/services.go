package main

import (
	"io"

	"trilith.test/etcd"
)

// maintenance is the part of what one member tells of itself.
func (t *tour) maintenance() {
	t.put("a", "1")
	status, err := t.client.Status(t.ctx, t.endpoint)
	if !t.failed("status", err) {
		t.say("status: %s version %s, set: %s", t.header(status.Header), status.Version, set(status))
		t.say("this member leads: %t", status.Leader == status.Header.MemberId)
	}
	alarms, err := t.client.AlarmList(t.ctx)
	if !t.failed("alarms", err) {
		t.say("alarms: %s %d", t.header(alarms.Header), len(alarms.Alarms))
	}
	alarms, err = t.client.AlarmDisarm(t.ctx, &etcd.AlarmMember{})
	if !t.failed("disarm", err) {
		t.say("disarm: %s %d", t.header(alarms.Header), len(alarms.Alarms))
	}
	for _, revision := range []int64{0, t.base + 1} {
		hash, err := t.client.HashKV(t.ctx, t.endpoint, revision)
		if !t.failed("hash", err) {
			t.say("hash: %s, some hash %t", t.header(hash.Header), hash.Hash != 0)
		}
	}
	answer, err := t.client.Defragment(t.ctx, t.endpoint)
	if !t.failed("defragment", err) {
		t.say("defragment: %s", t.header(answer.Header))
	}
	t.get("after", "a")
}

// members is the part of the list of members.
func (t *tour) members() {
	answer, err := t.client.MemberList(t.ctx)
	if t.failed("members", err) {
		return
	}
	t.say("members: %s %d", t.header(answer.Header), len(answer.Members))
	for _, member := range answer.Members {
		t.say("the answering member is in the list: %t", member.ID == answer.Header.MemberId)
		t.say("name %t, peer URLs %d, client URLs %d", member.Name != "", len(member.PeerURLs), len(member.ClientURLs))
	}
}

// memberChanges is the part of calls that change the cluster and are refused.
func (t *tour) memberChanges() {
	_, err := t.client.MemberRemove(t.ctx, 7)
	t.failed("remove", err)
	_, err = t.client.MemberUpdate(t.ctx, 7, []string{"http://127.0.0.1:1"})
	t.failed("update", err)
}

// leader is the part of moving leadership: to the member that has it, and to one that is none.
func (t *tour) leader() {
	status, err := t.client.Status(t.ctx, t.endpoint)
	if t.failed("status", err) {
		return
	}
	for _, target := range []uint64{status.Leader, 7} {
		answer, err := t.client.MoveLeader(t.ctx, target)
		if !t.failed("move leader", err) {
			t.say("leadership moved, a header %t", answer.Header != nil)
		}
	}
}

// auth is the part of authentication while it is disabled.
func (t *tour) auth() {
	users, err := t.client.UserList(t.ctx)
	if !t.failed("users", err) {
		t.say("users: %s %d", t.header(users.Header), len(users.Users))
	}
	roles, err := t.client.RoleList(t.ctx)
	if !t.failed("roles", err) {
		t.say("roles: %s %d", t.header(roles.Header), len(roles.Roles))
	}
	_, err = t.client.UserGet(t.ctx, "nobody")
	t.failed("user", err)
	_, err = t.client.RoleGet(t.ctx, "nothing")
	t.failed("role", err)
	_, err = t.client.UserDelete(t.ctx, "nobody")
	t.failed("delete user", err)
	_, err = t.client.AuthEnable(t.ctx)
	t.failed("enable", err)
	if _, err = t.client.AuthDisable(t.ctx); !t.failed("disable", err) {
		t.say("disable: disabled before")
	}
}

// snapshot is the part of the stream of the database.
func (t *tour) snapshot() {
	stream, err := etcd.Snapshot(t.ctx, t.client)
	if t.failed("snapshot", err) {
		return
	}
	defer stream.Close()
	length, err := io.Copy(io.Discard, stream)
	if !t.failed("snapshot", err) {
		t.say("snapshot: whole pages and a digest: %t", length%512 == 32)
	}
}
