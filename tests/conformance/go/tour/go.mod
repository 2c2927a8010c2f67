module trilith.test/tour

go 1.22

require trilith.test/etcd v0.0.0
