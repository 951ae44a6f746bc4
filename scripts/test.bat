@echo off
rem Lint and all tests, on the CPU, in an environment of the project's own. Further arguments go to pytest.
setlocal
call "%~dp0setup_env.bat" tests\requirements.txt || exit /b 1
"%PY%" -m ruff check . || exit /b 1
set CUDA_VISIBLE_DEVICES=
"%PY%" -m pytest %*
exit /b %ERRORLEVEL%
