"""`asmg bench guardrails`: what the guardrails notice, and whether they cry wolf."""
