package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"tidemark/api/access"
	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

// known is who may read, and what signs their tokens.
type known struct {
	clients *clients.Registry
	secrets []smart.Secret
	quota   *access.Quota
}

// openAccess reads the registry of an open store and takes the clients of the
// configuration into it. The store's lock is what makes us its only writer.
func openAccess(c *config.Config, log *slog.Logger) (*known, error) {
	dir := clients.Dir(store.Disk, c.Store.Path)
	registry, err := openClients(c)
	if err != nil {
		return nil, err
	}
	list, err := configured(c)
	if err != nil {
		return nil, err
	}
	if _, err := registry.Configure(list); err != nil {
		return nil, err
	}
	secrets, err := clients.Secrets(store.Disk, dir)
	if err != nil {
		return nil, err
	}
	quota := &access.Quota{Jobs: c.Limits.JobsPerClientDay, Bytes: int64(c.Limits.BytesPerClientDay)}
	if err := quota.Keep(store.Disk, dir); err != nil {
		log.Warn("what clients had today is not known", "error", err)
	}
	return &known{registry, secrets, quota}, nil
}

// openClients reads the registry as it is.
func openClients(c *config.Config) (*clients.Registry, error) {
	registry, err := clients.Open(store.Disk, clients.Dir(store.Disk, c.Store.Path))
	if err != nil {
		return nil, err
	}
	registry.Rules = c.Rules()
	return registry, nil
}

// configured are the clients of the configuration, with what their files hold.
func configured(c *config.Config) (list []clients.Client, err error) {
	var faults []error
	for i := range c.Auth.Clients {
		of := &c.Auth.Clients[i]
		proof, err := proofOf(of)
		if err != nil {
			faults = append(faults, fmt.Errorf("auth.clients[%d]: %w", i, err))
		}
		list = append(list, clients.Client{ID: of.ID, Name: of.Name, Proof: proof, May: of.May(), Limits: of.Limits.Own()})
	}
	return list, errors.Join(faults...)
}

func proofOf(c *config.Client) (clients.Proof, error) {
	switch {
	case c.JWKS != "":
		return clients.Proof{KeySet: []byte(c.JWKS)}, nil
	case c.JWKSFile != "":
		return keysIn(c.JWKSFile)
	case c.JWKSURI != "":
		return clients.Proof{KeysURL: c.JWKSURI}, nil
	case c.SecretFile != "":
		text, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return clients.Proof{}, fmt.Errorf("read the secret of a client: %w", err)
		}
		proof, err := clients.BySecret(string(bytes.TrimRight(text, "\r\n")))
		if err != nil {
			err = fmt.Errorf("%s: %w", c.SecretFile, err)
		}
		return proof, err
	}
	return clients.Proof{}, nil // of another server
}

// keysIn reads public keys. What is wrong with them is said with the file's name.
func keysIn(file string) (clients.Proof, error) {
	set, err := os.ReadFile(file)
	if err != nil {
		return clients.Proof{}, fmt.Errorf("read the keys of a client: %w", err)
	}
	if _, err := smart.ParseKeys(set); err != nil {
		return clients.Proof{}, fmt.Errorf("%s: %w", file, err)
	}
	return clients.Proof{KeySet: set}, nil
}
