module trilith.test/etcd

go 1.22

require (
	github.com/coreos/etcd v3.3.13+incompatible
	github.com/coreos/go-semver v0.2.0 // indirect
	github.com/gogo/protobuf v1.0.0 // indirect
	github.com/golang/protobuf v1.1.0 // indirect
	golang.org/x/net v0.0.0-20190813141303-74dc4d7220e7 // indirect
	golang.org/x/sys v0.0.0-20190826190057-c7b8b68b1456 // indirect
	golang.org/x/text v0.3.3 // indirect
	google.golang.org/genproto v0.0.0-20180608181217-32ee49c4dd80 // indirect
	google.golang.org/grpc v1.7.5
)

require trilith.test/tour v0.0.0

replace trilith.test/tour => ../tour
