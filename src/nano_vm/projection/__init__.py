"""What one audience may see, built by allow-list: a view has what its target is entitled to, and nothing that happens
to lie beside it (SPEC §9). Pure; the runtime builds what it hands to models and tools with these functions."""
