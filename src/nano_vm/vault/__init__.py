"""The vault: secrets and the keys of private values, outside every database (SPEC §9).

`kek` finds the key-encryption key, `cipher` is AES-256-GCM, `cabinet` keeps small files (or none, in memory), `keys`
wraps one data key per data subject or secret, `erasures` remembers what was destroyed, `local` puts them together as
`Vault`, `environment` is a source of secrets without files.
"""
