"""The criteria that say which filters go, a file each; `kinds` says what each kind looks at."""
