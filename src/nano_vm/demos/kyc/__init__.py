"""The KYC laboratory: one review of an applicant, written twice, and eight attacks on both (SPEC §16)."""
