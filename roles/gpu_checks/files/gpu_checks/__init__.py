"""What a GPU host has to pass: its devices, their driver, and that programs and containers can compute on them.

Ansible packs this folder into one program (lookup `python_program`), which runs on a host as root, with the system's
Python alone. Everything that it learns about the host goes through `host.Host`, so that tests can put readings recorded
on real hardware in its place. The driver's own library compiles what the devices compute: neither a compiler nor CUDA
has to be installed. A failed check says in its last sentence what mends it.

`validate` looks at a host in seconds, `burnin` works its devices for minutes or hours.
"""
