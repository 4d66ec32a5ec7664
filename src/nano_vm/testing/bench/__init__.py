"""The ten integration scenarios of `nano-vm bench` (SPEC §17): the engine as it is, at work, with what it did counted.

`suite` is the place to begin reading: which scenarios there are, and how one is carried out in a process of its own.
"""
