"""Speed and memory, measured side by side with the tools that operators know (goals, section 2)."""
