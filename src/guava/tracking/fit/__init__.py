"""Fitting the template to detected points: face and eyes (Eq. 7), hands, body with hands (Eq. 8)."""
