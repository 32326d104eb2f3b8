"""Who may call what over HTTP: API keys, JSON Web Tokens, scopes and limits of a caller."""
