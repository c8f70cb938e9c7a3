package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// adminFile is written last: where it is, the folder is complete.
const adminFile = "admin.kubeconfig"

// subject is what one certificate says.
type subject struct {
	file, name, organization string
	server                   bool
	alternatives             []string
}

// pair is a certificate and its key.
type pair struct {
	certificate     *x509.Certificate
	key             *ecdsa.PrivateKey
	certPEM, keyPEM []byte
}

func pkiOnly(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("pki", flag.ExitOnError)
	dir := flags.String("dir", "pki", "folder to fill")
	server := flags.String("server", "https://127.0.0.1:6443", "API server's URL, as the kubeconfigs shall have it")
	names := flags.String("sans", "", "further names and addresses of the API server, comma-separated")
	nodes := flags.String("nodes", "", "NAME=ADDRESS[+ADDRESS],... nodes to write kubelet certificates for")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return writePKI(*dir, *server, split(*names), split(*nodes))
}

// writePKI fills a folder with authorities, certificates and a kubeconfig for each user; a complete folder is kept.
func writePKI(dir, server string, serverNames, nodes []string) error {
	if _, err := os.Stat(filepath.Join(dir, adminFile)); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	authority, err := issue(dir, subject{file: "ca", name: "testbed-ca"}, nil)
	if err != nil {
		return err
	}
	frontProxy, err := issue(dir, subject{file: "front-proxy-ca", name: "testbed-front-proxy-ca"}, nil)
	if err != nil {
		return err
	}
	if _, err := issue(dir, subject{file: "front-proxy-client", name: "front-proxy-client"}, frontProxy); err != nil {
		return err
	}
	if _, err := issue(dir, subject{file: "sa", name: "sa"}, nil); err != nil {
		return err
	}
	serverNames = append([]string{
		"127.0.0.1", "::1", "localhost", "10.96.0.1", "fd00:96::1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, serverNames...)
	users, err := subjects(nodes)
	if err != nil {
		return err
	}
	users = append(users, subject{file: "apiserver", name: "kube-apiserver", server: true, alternatives: serverNames})
	for _, user := range users {
		issued, err := issue(dir, user, authority)
		if err != nil {
			return err
		}
		auth := &clientcmdapi.AuthInfo{ClientCertificateData: issued.certPEM, ClientKeyData: issued.keyPEM}
		if err := writeKubeconfig(filepath.Join(dir, user.file+".kubeconfig"), server, authority, auth); err != nil {
			return err
		}
	}
	return writeAdmin(dir, server, authority)
}

// subjects are the users with certificates; those of kubelets serve, too.
func subjects(nodes []string) ([]subject, error) {
	users := []subject{
		{file: "apiserver-kubelet-client", name: "kube-apiserver-kubelet-client", organization: "system:masters"},
		{file: "kube-controller-manager", name: "system:kube-controller-manager"},
		{file: "kube-scheduler", name: "system:kube-scheduler"},
		{file: "kube-proxy", name: "system:kube-proxy"},
		{file: "admin-cert", name: "admin", organization: "system:masters"},
	}
	for _, node := range nodes {
		name, addresses, ok := strings.Cut(node, "=")
		if !ok {
			return nil, fmt.Errorf("-nodes: %q is not NAME=ADDRESS[+ADDRESS]", node)
		}
		users = append(users, subject{
			file: "kubelet-" + name, name: "system:node:" + name, organization: "system:nodes", server: true,
			alternatives: append([]string{name, "127.0.0.1", "localhost"}, strings.Split(addresses, "+")...),
		})
	}
	return users, nil
}

// writeAdmin gives the person in front of it a token, so that tools without client certificates work as well.
func writeAdmin(dir, server string, authority *pair) error {
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	token := hex.EncodeToString(random)
	line := token + `,admin,admin,"system:masters"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(line), 0o600); err != nil {
		return err
	}
	return writeKubeconfig(filepath.Join(dir, adminFile), server, authority, &clientcmdapi.AuthInfo{Token: token})
}

func writeKubeconfig(path, server string, authority *pair, auth *clientcmdapi.AuthInfo) error {
	const name = "testbed"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: authority.certPEM}
	config.AuthInfos[name] = auth
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}

// issue makes a certificate, signed by the authority or, without one, an authority of its own, and writes both files.
func issue(dir string, who subject, authority *pair) (*pair, error) {
	made, err := sign(who, authority)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", who.file, err)
	}
	if err := os.WriteFile(filepath.Join(dir, who.file+".crt"), made.certPEM, 0o600); err != nil {
		return nil, err
	}
	return made, os.WriteFile(filepath.Join(dir, who.file+".key"), made.keyPEM, 0o600)
}

func sign(who subject, authority *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := templateOf(who, authority == nil)
	if err != nil {
		return nil, err
	}
	parent, signer := template, key
	if authority != nil {
		parent, signer = authority.certificate, authority.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pair{
		certificate: certificate,
		key:         key,
		certPEM:     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:      pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

func templateOf(who subject, authority bool) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: who.name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if who.organization != "" {
		template.Subject.Organization = []string{who.organization}
	}
	if authority {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
		return template, nil
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if who.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, name := range who.alternatives {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return template, nil
}
