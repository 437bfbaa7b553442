package auth

// loginServer implements the mechanism LOGIN, which go-sasl has for clients only. It was never
// standardised (draft-murchison-sasl-login). Clients expect exactly these challenges, and some
// send the name as an initial response.
type loginServer struct {
	// Set once.
	accept func(user, password string) error
	// Owned by the session.
	handle func(response []byte) (challenge []byte, done bool, err error)
}

func newLoginServer(accept func(user, password string) error) *loginServer {
	s := &loginServer{accept: accept}
	s.handle = s.readUser
	return s
}

// Next implements sasl.Server.
func (s *loginServer) Next(response []byte) ([]byte, bool, error) { return s.handle(response) }

// readUser requests the name until it arrives, then the password.
func (s *loginServer) readUser(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte("Username:"), false, nil
	}
	user := string(response)
	s.handle = func(response []byte) ([]byte, bool, error) {
		err := s.accept(user, string(response))
		return nil, err == nil, err
	}
	return []byte("Password:"), false, nil
}
